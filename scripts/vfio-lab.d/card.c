/* Adds the device "lab-card" to QEMU: its own teaching device "edu" (a register
 * that inverts what is written, a factorial, DMA) with the numbers of a Tesla
 * V100, and a property "dead" that makes it answer all ones, as a card does that
 * has fallen off the bus:
 *
 *   qom-set /machine/peripheral/NAME dead true
 *
 * QEMU of Debian exports the functions that its modules need, so that a library
 * loaded before it (LD_PRELOAD) can register a type. The structures are those of
 * QEMU 7.2 (include/qom/object.h, include/hw/pci/pci.h); what is not found as
 * expected ends QEMU with a message.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct type_info {
	const char *name, *parent;
	size_t instance_size, instance_align;
	void (*instance_init)(void *);
	void (*instance_post_init)(void *);
	void (*instance_finalize)(void *);
	bool abstract;
	size_t class_size;
	void (*class_init)(void *, void *);
	void (*class_base_init)(void *, void *);
	void *class_data, *interfaces;
};

typedef uint32_t config_read(void *device, uint32_t address, int length);

/* The part of PCIDeviceClass that is found by the numbers of "edu". */
struct pci_class {
	config_read *read;
	void *write;
	uint16_t vendor, device;
	uint8_t revision;
	uint16_t class, subsystem_vendor, subsystem;
};

struct region_ops {
	uint64_t (*read)(void *, uint64_t, unsigned);
	void (*write)(void *, uint64_t, uint64_t, unsigned);
	void *with_attributes[2];
	int endianness;
	struct { unsigned min, max; bool unaligned; void *accepts; } valid;
	struct { unsigned min, max; bool unaligned; } impl;
};

extern void *type_register_static(const struct type_info *) __attribute__((weak));

static void *need(const char *name)
{
	void *f = dlsym(RTLD_DEFAULT, name);
	if (!f) {
		fprintf(stderr, "lab-card: this QEMU does not export %s\n", name);
		exit(1);
	}
	return f;
}

enum { cards = 16, window = 1 << 20 };
static struct card { void *device; bool dead; } card[cards];

static struct card *find(void *device)
{
	for (int i = 0; i < cards; i++) {
		if (card[i].device == device || !card[i].device) {
			card[i].device = device;
			return &card[i];
		}
	}
	fprintf(stderr, "lab-card: more than %d cards\n", cards);
	exit(1);
}

static config_read *edu_read;

static uint32_t read_config(void *device, uint32_t address, int length)
{
	if (find(device)->dead)
		return 0xffffffff >> (32 - 8 * length);
	if (edu_read)
		return edu_read(device, address, length);
	config_read *standard = need("pci_default_read_config");
	return standard(device, address, length);
}

static uint64_t read_ones(void *o, uint64_t address, unsigned size) { return ~0ULL; }
static void write_nothing(void *o, uint64_t address, uint64_t value, unsigned size) { }

static bool get_dead(void *device, void **error) { return find(device)->dead; }

/* The card's registers are covered by a region that reads all ones. */
static void set_dead(void *device, bool dead, void **error)
{
	static const struct region_ops ops = {
		.read = read_ones, .write = write_nothing,
		.valid = { .min = 1, .max = 8 }, .impl = { .min = 1, .max = 8 },
	};
	struct card *c = find(device);
	if (dead == c->dead)
		return;
	if (!dead) {
		fprintf(stderr, "lab-card: a dead card stays dead\n");
		return;
	}
	void *(*child)(void *, const char *) = need("object_resolve_path_component");
	void (*init)(void *, void *, const struct region_ops *, void *, const char *, uint64_t) = need("memory_region_init_io");
	void (*cover)(void *, uint64_t, void *, int) = need("memory_region_add_subregion_overlap");
	void *registers = child(device, "edu-mmio[0]");
	if (!registers) {
		fprintf(stderr, "lab-card: edu has no edu-mmio[0]\n");
		exit(1);
	}
	void *ones = calloc(1, 4096); /* a MemoryRegion is far smaller */
	init(ones, device, &ops, NULL, "lab-card-ones", window);
	cover(registers, 0, ones, 1);
	c->dead = true;
}

static void class_init(void *class, void *data)
{
	for (size_t at = 64; at < 1024; at += 8) {
		struct pci_class *c = (void *)((char *)class + at);
		if (c->vendor == 0x1234 && c->device == 0x11e8 && c->class == 0x00ff) {
			edu_read = c->read;
			c->read = read_config;
			c->vendor = 0x10de;
			c->device = 0x1db4;
			c->revision = 0xa1;
			c->class = 0x0302;
			c->subsystem_vendor = 0x10de;
			c->subsystem = 0x1214;
			void (*add)(void *, const char *, bool (*)(void *, void **), void (*)(void *, bool, void **)) = need("object_class_property_add_bool");
			add(class, "dead", get_dead, set_dead);
			return;
		}
	}
	fprintf(stderr, "lab-card: the numbers of edu are not where QEMU 7.2 has them\n");
	exit(1);
}

__attribute__((constructor)) static void start(void)
{
	static const struct type_info type = { .name = "lab-card", .parent = "edu", .class_init = class_init };
	if (type_register_static) {
		unsetenv("LD_PRELOAD");
		type_register_static(&type);
	}
}
