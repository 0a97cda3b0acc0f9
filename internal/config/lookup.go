package config

import (
	"cmp"
	"net"
	"slices"
	"strconv"

	"gpuserver"
)

// FlavorFor gives our flavor that a runner entry's instance_type means.
func (c *Config) FlavorFor(instanceType string) (string, bool) {
	for i := range c.Flavors {
		if f := &c.Flavors[i]; f.Name == instanceType || slices.Contains(f.Aliases, instanceType) {
			return f.Name, true
		}
	}
	return "", false
}

// ModelFor gives our name of the GPU model that a name or alias means.
func (c *Config) ModelFor(name string) (string, bool) {
	for i := range c.GPUModels {
		if m := &c.GPUModels[i]; m.Name == name || slices.Contains(m.Aliases, name) {
			return m.Name, true
		}
	}
	return "", false
}

// Models gives our names of GPU models by their cards' vendor and device numbers.
func (c *Config) Models() map[string]string {
	models := map[string]string{}
	for _, m := range c.GPUModels {
		for _, id := range m.IDs {
			models[id] = m.Name
		}
	}
	return models
}

// ROMs gives the firmware files that VMs are shown, by their cards' vendor and
// device numbers.
func (c *Config) ROMs() map[string]string {
	roms := map[string]string{}
	for _, m := range c.GPUModels {
		for _, id := range m.IDs {
			if m.ROM != "" {
				roms[id] = string(m.ROM)
			}
		}
	}
	return roms
}

func (c *Config) modelNames() (names []string) {
	for _, m := range c.GPUModels {
		names = append(names, m.Name)
	}
	return names
}

// ImageFor gives our image that a runner entry's machine_image means.
func (c *Config) ImageFor(machineImage string) (string, bool) {
	for i := range c.Images {
		if m := &c.Images[i]; m.Name == machineImage || slices.Contains(m.Aliases, machineImage) {
			return m.Name, true
		}
	}
	return "", false
}

// HasImage reports whether an image has a source on a cloud, both by our names.
func (c *Config) HasImage(image, cloud string) bool {
	for i := range c.Clouds {
		if c.Clouds[i].Name != cloud {
			continue
		}
		for j := range c.Images {
			if m := &c.Images[j]; m.Name == image {
				return slices.Contains(m.types(), c.Clouds[i].Type)
			}
		}
	}
	return false
}

// FlavorMap gives the flavors by name, each with its time limit.
func (c *Config) FlavorMap() map[string]gpuserver.Flavor {
	flavors := make(map[string]gpuserver.Flavor, len(c.Flavors))
	for _, f := range c.Flavors {
		flavor := gpuserver.Flavor{
			Name: f.Name, VCPUs: f.VCPUs, MemoryMiB: f.Memory.MiB(), DiskGiB: f.Disk.GiB(),
			TimeLimit: cmp.Or(f.TimeLimit, c.Jobs.TimeLimit),
		}
		if f.GPUs != nil {
			flavor.GPUs.Count = f.GPUs.Count
			flavor.GPUs.Model, _ = c.ModelFor(f.GPUs.Model) // known: it was checked
		}
		flavors[f.Name] = flavor
	}
	return flavors
}

// ImageMap gives the images by name.
func (c *Config) ImageMap() map[string]gpuserver.Image {
	images := make(map[string]gpuserver.Image, len(c.Images))
	for _, m := range c.Images {
		images[m.Name] = gpuserver.Image{Name: m.Name, Aliases: slices.Clone(m.Aliases)}
	}
	return images
}

// AgentURL is the URL under which guests reach the agent listener.
func (c *Config) AgentURL() string {
	if c.Server.AgentURL != "" {
		return string(c.Server.AgentURL)
	}
	return "http://" + string(c.Server.Listen.Agent)
}

// AgentURLFor is the URL under which a cloud's guests reach the agent listener.
func (c *Config) AgentURLFor(cloud string) string {
	for i := range c.Clouds {
		if o := c.Clouds[i].OpenStack; o != nil && c.Clouds[i].Name == cloud && o.AgentURL != "" {
			return string(o.AgentURL)
		}
	}
	return c.AgentURL()
}

// AgentPort is the port of the agent listener, 0 if there is none.
func (c *Config) AgentPort() int {
	_, port, err := net.SplitHostPort(string(c.Server.Listen.Agent))
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return 0
	}
	return n
}
