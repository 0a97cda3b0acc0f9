// Package config reads the one strict configuration file of the service and
// says of every mistake in it where it is and what was expected.
//
// The structs here are the only description of the file: the decoder, the JSON
// Schema and the check of the commented sample all read their tags. A field
// whose json tag lacks "omitempty" is required; "jsonschema" describes it;
// "enum" lists its values; "range" bounds a number ("1..64"), a duration or a
// size.
package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"gpuserver"
	"gpuserver/internal/cirun"
)

// Config is the whole configuration file.
type Config struct {
	Server    Server     `json:"server,omitempty" jsonschema:"The server itself: its name, data folder, listeners and log."`
	Forges    []Forge    `json:"forges,omitempty" jsonschema:"The forges whose jobs are run. None: only local jobs (gpuserver run)."`
	Clouds    []Cloud    `json:"clouds" jsonschema:"Where VMs are made."`
	GPUModels []GPUModel `json:"gpu_models,omitempty" jsonschema:"What the models of GPU are called that VMs may have."`
	Flavors   []Flavor   `json:"flavors,omitempty" jsonschema:"The sizes of VM. None listed: the default catalogue. A list replaces it whole."`
	Images    []Image    `json:"images" jsonschema:"What VMs boot."`
	Runners   *Section   `json:"runners,omitempty" jsonschema:"Runner entries in Cirun's own form (.cirun.yml), for every owner that is served. They come before those that owners keep in their own repositories."`
	Access    *Section   `json:"access,omitempty" jsonschema:"Access control in Cirun's own form (.access.yml), for the runner entries of this file."`
	Jobs      Jobs       `json:"jobs,omitempty" jsonschema:"Time limits and retries of jobs."`
	Retention Retention  `json:"retention,omitempty" jsonschema:"How long what is over is kept."`
	Reconcile Reconcile  `json:"reconcile,omitempty" jsonschema:"How often store, clouds and forges are compared. Nothing waits for these: they repair what was lost."`
	API       API        `json:"api,omitempty" jsonschema:"Who may use the API over TCP. The socket needs no token: only root can open it."`

	// Path is the file that it was read from, "" if none.
	Path string `json:"-"`

	secrets []placedSecret
	logins  map[string]Problem // where clouds of type openstack say how they log in, by path; without a text
	// catalogue says that the flavors are those of the default catalogue.
	catalogue bool
	runners   *cirun.File
	access    *cirun.Access
}

// Server is the server itself.
type Server struct {
	Name         string        `json:"name,omitempty" jsonschema:"Name of this installation. It tags every VM and begins every VM's and runner's name; change it only while no VM lives. Lower case letters, digits and '-', at most 20."`
	DataDir      Path          `json:"data_dir,omitempty" jsonschema:"Folder of the database."`
	Listen       Listen        `json:"listen,omitempty" jsonschema:"The listeners."`
	PublicURL    URL           `json:"public_url,omitempty" jsonschema:"URL under which people reach the pages; check runs link to it. None: no link."`
	AgentURL     URL           `json:"agent_url,omitempty" jsonschema:"URL under which guests reach the agent listener, if it is not http:// and listen.agent."`
	Log          Log           `json:"log,omitempty" jsonschema:"The log, on standard error."`
	DrainTimeout time.Duration `json:"drain_timeout,omitempty" range:"1s..9s" jsonschema:"How long a stopping server finishes what it is doing; it ends within 10s. Running jobs go on in their VMs and are taken up by the next start."`
}

// Listen says where the server listens. An empty address switches one off.
type Listen struct {
	Webhooks Address `json:"webhooks,omitempty" jsonschema:"Deliveries from forges (HTTP; put a TLS proxy before it). \"\" with forges in pull mode only."`
	Agent    Address `json:"agent,omitempty" jsonschema:"Agents in VMs. On the bridge's address, so that only guests reach it."`
	API      Address `json:"api,omitempty" jsonschema:"API, pages and metrics. Stay on loopback or put a TLS proxy before it."`
	Socket   Path    `json:"socket,omitempty" jsonschema:"API on a unix socket that only root can open; the command line uses it."`
}

// Log says what is logged.
type Log struct {
	Level  string `json:"level,omitempty" enum:"debug,info,warn,error" jsonschema:"The least severe level that is logged."`
	Format string `json:"format,omitempty" enum:"json,text" jsonschema:"One JSON object or one line of key=value a record."`
}

// Forge is a forge with our identity (a GitHub App) on it.
type Forge struct {
	Name           string        `json:"name" jsonschema:"Its name in logs and in the API."`
	Type           string        `json:"type" enum:"github" jsonschema:"What it is."`
	BaseURL        URL           `json:"base_url,omitempty" jsonschema:"Its REST API. GitHub Enterprise Server: https://HOST/api/v3."`
	AppID          int64         `json:"app_id" range:"1.." jsonschema:"The number of the GitHub App."`
	PrivateKey     Secret        `json:"private_key" jsonschema:"The App's private key (PEM)."`
	WebhookSecrets []Secret      `json:"webhook_secrets,omitempty" jsonschema:"The webhook's secret. Several while one is being replaced: any of them is accepted."`
	Mode           string        `json:"mode,omitempty" enum:"webhook,pull" jsonschema:"webhook: the forge calls us. pull: we ask for new deliveries; for a machine that nothing can reach."`
	PullEvery      time.Duration `json:"pull_every,omitempty" range:"1s..10m" jsonschema:"How often a forge in pull mode is asked for deliveries."`
	Owners         []string      `json:"owners,omitempty" jsonschema:"Users and organisations whose jobs are run. None: of everybody who installed the App; set it unless the App is private."`
	RunnerScope    string        `json:"runner_scope,omitempty" enum:"repository,organisation" jsonschema:"Where runners are registered. At a repository, jobs of others can never take them."`
	RunnerGroup    string        `json:"runner_group,omitempty" jsonschema:"The runner group, with runner_scope organisation."`
	LabelPrefixes  []string      `json:"label_prefixes,omitempty" jsonschema:"Labels that begin like this may be ours even if no runner entry that was read yet has them. Jobs with other labels are dropped unread."`
	CheckName      string        `json:"check_name,omitempty" jsonschema:"Name of the check run that says why a job waits or was refused."`
	Config         ForgeConfig   `json:"config,omitempty" jsonschema:"Where owners keep runner entries and access control."`
	Budget         Budget        `json:"budget,omitempty" jsonschema:"How much of the forge's rate limits may be used."`
}

// ForgeConfig says where owners keep their part of the configuration.
type ForgeConfig struct {
	OrganisationRepo string `json:"organisation_repo,omitempty" jsonschema:"The repository of an organisation that holds its files."`
	RunnersFile      string `json:"runners_file,omitempty" jsonschema:"The organisation's runner entries, in that repository."`
	AccessFile       string `json:"access_file,omitempty" jsonschema:"The organisation's access control, in that repository."`
	RepositoryFile   string `json:"repository_file,omitempty" jsonschema:"A repository's own runner entries. \"\": repositories define none."`
	Forks            string `json:"forks,omitempty" enum:"refuse,allow" jsonschema:"Pull requests from forks where no access file exists."`
}

// Budget bounds the calls to a forge. The defaults are GitHub's documented
// limits. Source: docs.github.com, "Rate limits for the REST API".
type Budget struct {
	PointsPerMinute      int `json:"points_per_minute,omitempty" range:"1..100000" jsonschema:"Points a minute (a read costs 1, a write 5)."`
	RegistrationsPerHour int `json:"registrations_per_hour,omitempty" range:"1..1000000" jsonschema:"Runners registered an hour."`
	ContentPerMinute     int `json:"content_per_minute,omitempty" range:"1..100000" jsonschema:"Writes that people see (check runs) a minute."`
	ContentPerHour       int `json:"content_per_hour,omitempty" range:"1..1000000" jsonschema:"Writes that people see an hour."`
}

// Flavor is a size of VM.
type Flavor struct {
	Name      string        `json:"name" jsonschema:"Its name, the instance_type of runner entries."`
	Aliases   []string      `json:"aliases,omitempty" jsonschema:"Other instance_type names that mean it."`
	VCPUs     int           `json:"vcpus" range:"1..1024" jsonschema:"Virtual CPUs."`
	Memory    Size          `json:"memory" range:"128MiB..64TiB" jsonschema:"Memory, in whole MiB."`
	Disk      Size          `json:"disk" range:"1GiB..1024TiB" jsonschema:"Size of the root disk, in whole GiB; all of it is reserved."`
	TimeLimit time.Duration `json:"time_limit,omitempty" range:"1s..35d" jsonschema:"Time limit of a job on it; jobs.time_limit if not given."`
	GPUs      *GPUs         `json:"gpus,omitempty" jsonschema:"The GPUs that it has. None: a VM without."`
}

// GPUs are the cards of a flavor.
type GPUs struct {
	Model string `json:"model" jsonschema:"The name or an alias of one of gpu_models."`
	Count int    `json:"count,omitempty" range:"1..16" jsonschema:"How many cards."`
}

// GPUModel is what a model of GPU is called.
type GPUModel struct {
	Name    string   `json:"name" jsonschema:"Its name in flavors and in what people read."`
	Aliases []string `json:"aliases,omitempty" jsonschema:"Other names that mean it."`
	IDs     []string `json:"ids" jsonschema:"Vendor and device number of its cards, such as 10de:1db4; gpuserver host inspect shows them."`
	ROM     Path     `json:"rom,omitempty" jsonschema:"Firmware that VMs are shown instead of what is on these cards, on clouds of type libvirt."`
}

// Image is what a VM boots, with its source on each cloud.
type Image struct {
	Name      string          `json:"name" jsonschema:"Its name, the machine_image of runner entries."`
	Aliases   []string        `json:"aliases,omitempty" jsonschema:"Other machine_image names that mean it."`
	Libvirt   *ImageFiles     `json:"libvirt,omitempty" jsonschema:"Its files for clouds of type libvirt."`
	OpenStack *OpenStackImage `json:"openstack,omitempty" jsonschema:"What it is on clouds of type openstack."`
	Fake      *FakeImage      `json:"fake,omitempty" jsonschema:"It exists on clouds of type fake (tests and benchmarks)."`
}

// ImageFiles are an image's files for libvirt. Without a kernel the disk is
// booted by firmware.
type ImageFiles struct {
	Disk    Path   `json:"disk" jsonschema:"The root disk. It is shared read-only by all VMs and never written."`
	Format  string `json:"format,omitempty" enum:"qcow2,raw" jsonschema:"The disk's format."`
	Kernel  Path   `json:"kernel,omitempty" jsonschema:"Linux kernel to boot directly. None: the disk is booted."`
	Initrd  Path   `json:"initrd,omitempty" jsonschema:"Initial RAM disk, with kernel."`
	Cmdline string `json:"cmdline,omitempty" jsonschema:"Kernel command line, with kernel."`
}

// FakeImage says that an image exists on clouds of type fake, which need no
// source.
type FakeImage struct{}

// Jobs are limits that hold for all jobs.
type Jobs struct {
	BootTimeout       time.Duration `json:"boot_timeout,omitempty" range:"1s..1d" jsonschema:"From the create call to the agent's first report; then the VM is given up."`
	EmulationFactor   int           `json:"emulation_factor,omitempty" range:"1..100" jsonschema:"boot_timeout is multiplied by it on a cloud without hardware acceleration."`
	IdleTimeout       time.Duration `json:"idle_timeout,omitempty" range:"1s..1d" jsonschema:"A runner that is up and has had no job for so long is retired."`
	TimeLimit         time.Duration `json:"time_limit,omitempty" range:"1s..35d" jsonschema:"Time limit of a job whose flavor has none. GitHub itself ends jobs after 5 days."`
	Grace             time.Duration `json:"grace,omitempty" range:"0s..1h" jsonschema:"Between interrupting the runner at the time limit and destroying the VM."`
	Retries           int           `json:"retries,omitempty" range:"0..20" jsonschema:"How many more VMs are made for a job whose VM failed before it started."`
	RerunOnGPUFailure bool          `json:"rerun_on_gpu_failure,omitempty" jsonschema:"A job that failed while a GPU of its VM did is run again on its forge, at most as often as retries says. The GitHub App needs the permission Actions: write for it."`
	RetryAfter        time.Duration `json:"retry_after,omitempty" range:"0s..1d" jsonschema:"Pause before the first retry; doubled for each further one."`
	NoticeAfter       time.Duration `json:"notice_after,omitempty" range:"0s..1d" jsonschema:"A job that has waited for so long gets a check run that says why."`
	BackfillFor       time.Duration `json:"backfill_for,omitempty" range:"0s..7d" jsonschema:"How long smaller jobs may overtake a job that does not fit; then room is kept for it."`
	HoldImageAfter    int           `json:"hold_image_after,omitempty" range:"1..100" jsonschema:"An image is held after so many VMs in a row whose runner ended without a job."`

	SuspendFlavorAfter int           `json:"suspend_flavor_after,omitempty" range:"0..1000" jsonschema:"A flavor is suspended on a cloud after so many VMs in a row for which that found no host, although it had room by our ledger; jobs go to the next of their entries. 0: never."`
	SuspendFlavorOver  time.Duration `json:"suspend_flavor_over,omitempty" range:"0s..7d" jsonschema:"And not before they have gone on failing for so long."`
	SuspendFlavorFor   time.Duration `json:"suspend_flavor_for,omitempty" range:"1s..30d" jsonschema:"For so long; then one VM is made to see whether it works again. An operator ends it before by: gpuserver cloud resume CLOUD FLAVOR."`
}

// Retention is how long what is over is kept.
type Retention struct {
	Deliveries time.Duration `json:"deliveries,omitempty" range:"1h..365d" jsonschema:"Bodies of deliveries. GitHub redelivers for 3 days."`
	Consoles   time.Duration `json:"consoles,omitempty" range:"1h..3650d" jsonschema:"Consoles of VMs that are gone."`
	Jobs       time.Duration `json:"jobs,omitempty" range:"1h..3650d" jsonschema:"Jobs that are over, with their VMs and events."`
	Every      time.Duration `json:"every,omitempty" range:"1s..1d" jsonschema:"How often is tidied up."`
}

// Reconcile is how often things are compared.
type Reconcile struct {
	Clouds     time.Duration `json:"clouds,omitempty" range:"1s..1d" jsonschema:"VMs of each cloud with ours."`
	Jobs       time.Duration `json:"jobs,omitempty" range:"1s..1d" jsonschema:"Each unfinished job is read from its forge once in so long."`
	Runners    time.Duration `json:"runners,omitempty" range:"1s..1d" jsonschema:"Registrations at forges with ours."`
	Deliveries time.Duration `json:"deliveries,omitempty" range:"1s..1d" jsonschema:"Failed deliveries are asked for again."`
	Runs       time.Duration `json:"runs,omitempty" range:"1s..1d" jsonschema:"Queued runs of repositories seen recently are listed, because a forge sometimes never sends an event."`
	RunsFor    time.Duration `json:"runs_for,omitempty" range:"1m..365d" jsonschema:"How long ago a repository was seen recently."`
}

// API says who may use the API over TCP.
type API struct {
	Tokens []Token `json:"tokens,omitempty" jsonschema:"Bearer tokens."`
}

// Token is a bearer token of the API. Exactly one of Hash and Secret is given.
type Token struct {
	Name   string  `json:"name" jsonschema:"Who holds it; it is written to the log with what was done."`
	Role   string  `json:"role" enum:"viewer,operator,admin" jsonschema:"viewer reads; operator also cancels and retries jobs and deletes VMs; admin may do everything."`
	Hash   string  `json:"hash,omitempty" jsonschema:"SHA-256 of the token, in hex (printf %s TOKEN | sha256sum)."`
	Secret *Secret `json:"secret,omitempty" jsonschema:"The token itself, from a file or the environment."`
}

// Cloud is a place where VMs are made. The options of its type are in the block
// of the same name.
type Cloud struct {
	Name      string       `json:"name" jsonschema:"Its name in logs and in the API."`
	Type      string       `json:"type" enum:"libvirt,openstack,fake" jsonschema:"What it is."`
	Serves    []Serves     `json:"serves,omitempty" jsonschema:"The cloud and region of runner entries that it serves. None: those whose cloud is its name."`
	Libvirt   *Libvirt     `json:"libvirt,omitempty" jsonschema:"Options of type libvirt."`
	OpenStack *OpenStack   `json:"openstack,omitempty" jsonschema:"Options of type openstack."`
	Fake      *FakeOptions `json:"fake,omitempty" jsonschema:"Options of type fake: VMs that exist in memory only, for tests and benchmarks."`
}

// Serves is a cloud and region in Cirun's words.
type Serves struct {
	Cloud  string `json:"cloud" jsonschema:"The entry's cloud, such as openstack."`
	Region string `json:"region,omitempty" jsonschema:"The entry's region, such as RegionOne. None: any."`
}

// Libvirt are the options of VMs on this machine's libvirt.
type Libvirt struct {
	URI           string  `json:"uri,omitempty" jsonschema:"libvirtd's socket."`
	Dir           Path    `json:"dir,omitempty" jsonschema:"Folder of overlays, config drives and consoles; readable for QEMU's user, so never in a home. libvirt in server.data_dir if not given."`
	Accel         string  `json:"accel,omitempty" enum:"auto,kvm,tcg" jsonschema:"auto: KVM where it really works, else software emulation (tcg). kvm: KVM or nothing."`
	Overcommit    float64 `json:"overcommit,omitempty" range:"0.1..64" jsonschema:"Virtual CPUs for each CPU of the host."`
	MemoryReserve Size    `json:"memory_reserve,omitempty" range:"0B..1TiB" jsonschema:"Memory of the host that no VM gets."`
	DiskReserve   Size    `json:"disk_reserve,omitempty" range:"0B..1024TiB" jsonschema:"Disk under dir that no VM gets."`
	MaxVMs        int     `json:"max_vms,omitempty" range:"0..10000" jsonschema:"VMs at the same time. 0: as many as fit."`
	HugePages     bool    `json:"huge_pages,omitempty" jsonschema:"Take the memory of VMs from the host's huge pages, which have to be set aside (hugepages=N on the kernel's command line)."`
	Network       Network `json:"network,omitempty" jsonschema:"The VMs' own NAT network."`
}

// Network is the NAT network of libvirt's VMs.
type Network struct {
	Name       string         `json:"name,omitempty" jsonschema:"libvirt's name for it."`
	Bridge     string         `json:"bridge,omitempty" jsonschema:"The bridge; at most 15 characters."`
	CIDR       netip.Prefix   `json:"cidr,omitzero" jsonschema:"IPv4 range; the host has its first address."`
	CIDR6      netip.Prefix   `json:"cidr6,omitzero" jsonschema:"IPv6 range (a unique local one). None: no IPv6."`
	MTU        int            `json:"mtu,omitempty" range:"1280..9000" jsonschema:"The guests' MTU: that of the narrowest link between here and the internet."`
	DNS        []netip.Addr   `json:"dns,omitempty" jsonschema:"Name servers that the host asks for guests. None: those of the host."`
	OpenRanges []netip.Prefix `json:"open_ranges,omitempty" jsonschema:"Private ranges that guests may reach. None: the internet only."`
}

// FakeOptions are the options of a cloud that exists in memory only.
type FakeOptions struct {
	URL URL `json:"url,omitempty" jsonschema:"Where the fake cloud runs as a process of its own. None: within the server."`
}

// Load reads and checks a configuration file. The error's Kind is
// KindNotFound or KindUnavailable if it cannot be read, and KindInvalid, with
// Problems as the cause, if there are mistakes in it.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		kind := gpuserver.KindUnavailable
		if os.IsNotExist(err) {
			kind = gpuserver.KindNotFound
		}
		return nil, &gpuserver.Error{
			Kind: kind, Op: "config: read", Err: err,
			Public: fmt.Sprintf("the configuration file %s cannot be read; name one with --config", path),
		}
	}
	if abs, err := filepath.Abs(path); err == nil {
		return parse(data, path, filepath.Dir(abs))
	}
	return parse(data, path, filepath.Dir(path))
}

// Parse checks the text of a configuration file. The name stands in messages,
// and its folder is where relative paths in the file begin. It does no I/O: a
// file that is named need not be there.
func Parse(data []byte, name string) (*Config, error) {
	return parse(data, name, filepath.Dir(name))
}
