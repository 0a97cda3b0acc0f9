package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gpuserver"
	"gpuserver/internal/forge/forgetest"
	"gpuserver/internal/forge/forgetest/runnerclient"
)

// demoForge is the stand-in for GitHub in a network namespace of its own, at a
// public-range address (TEST-NET-2, RFC 5737): to the VMs it is a place on the
// internet, which they reach through the host's NAT and its rules.
type demoForge struct {
	*forgetest.Client
	ns, link string
	host     netip.Addr // our side of the link
	address  string     // that it listens on, in the namespace
	cmd      *exec.Cmd
	ended    chan struct{}
	errs     bytes.Buffer
	loopback *loopbackServer // its API for the service, which speaks plain HTTP on loopback only
}

const demoRepo = "octo/hello"

// startForge makes namespace and link and starts the process in it.
func startForge(ctx context.Context, name string) (f *demoForge, err error) {
	subnet, err := freeTestNet()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	host, forge := subnet.Addr().Next(), subnet.Addr().Next().Next()
	f = &demoForge{ns: name + "-forge", link: name + "-f", host: host, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			f.end()
		}
	}()
	for _, line := range []string{
		"netns add " + f.ns,
		"link add " + f.link + " type veth peer name eth0 netns " + f.ns,
		fmt.Sprintf("addr add %s/%d dev %s", host, subnet.Bits(), f.link),
		"link set " + f.link + " up",
		fmt.Sprintf("-n %s addr add %s/%d dev eth0", f.ns, forge, subnet.Bits()),
		"-n " + f.ns + " link set eth0 up",
		"-n " + f.ns + " link set lo up",
	} {
		if err := ip(ctx, line); err != nil {
			return f, err
		}
	}
	f.address = forge.String() + ":8090"
	f.cmd = exec.Command(iproute(), "netns", "exec", f.ns, self, "forgetest", "--listen", f.address) // our own program
	f.cmd.Stderr = &f.errs
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true} // Ctrl-C is ours to handle
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		return f, err
	}
	if err := f.cmd.Start(); err != nil {
		f.cmd = nil
		return f, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() { _ = f.cmd.Wait(); close(f.ended) }()
	if err != nil {
		return f, gpuserver.Errorf(gpuserver.KindUnavailable, "the stand-in for GitHub did not start: %s", strings.TrimSpace(f.errs.String()))
	}
	f.Client = &forgetest.Client{URL: "http://" + strings.TrimSpace(line)}
	target, err := url.Parse(f.URL)
	if err != nil {
		return f, err
	}
	f.loopback = newLoopback(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }})
	return f, f.loopback.err
}

// loopbackServer serves a handler on loopback.
type loopbackServer struct {
	http.Server
	url string
	err error
}

func newLoopback(h http.Handler) *loopbackServer {
	s := &loopbackServer{Server: http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.err = err
		return s
	}
	s.url = "http://" + ln.Addr().String()
	go func() { _ = s.Serve(ln) }()
	return s
}

// iproute gives the path of ip, which need not be in everybody's PATH.
func iproute() string {
	if p, err := exec.LookPath("ip"); err == nil {
		return p
	}
	return "/usr/sbin/ip"
}

func ip(ctx context.Context, line string) error {
	out, err := exec.CommandContext(ctx, iproute(), strings.Fields(line)...).CombinedOutput() // our own words
	if err != nil {
		return gpuserver.Errorf(gpuserver.KindUnavailable, "ip %s: %v: %s (network namespaces need root)", line, err, bytes.TrimSpace(out))
	}
	return nil
}

// freeTestNet gives a /30 of TEST-NET-2 that no interface has, and reserves it.
func freeTestNet() (netip.Prefix, error) {
	var ranges []netip.Prefix
	for last := 0; last < 256; last += 4 {
		ranges = append(ranges, netip.MustParsePrefix(fmt.Sprintf("198.51.100.%d/30", last)))
	}
	p, err := firstFree(ranges)
	if err == nil && !p.IsValid() {
		err = gpuserver.Errorf(gpuserver.KindUnavailable, "198.51.100.0/24 is in use on this machine; other demonstrations may still run")
	}
	return p, err
}

// end ends the process and takes the namespace away, and the link with it.
func (f *demoForge) end() {
	if f.loopback != nil {
		_ = f.loopback.Close()
	}
	if f.cmd != nil {
		_ = f.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-f.ended:
		case <-time.After(10 * time.Second):
			_ = f.cmd.Process.Kill()
			<-f.ended
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = ip(ctx, "link del "+f.link)
	_ = ip(ctx, "netns del "+f.ns)
}

// The organisation's files on the stand-in, in Cirun's form: the service reads
// them as it would on GitHub.
const (
	demoRunners = `runners:
  - name: cirun-openstack-gpu-large
    cloud: openstack
    instance_type: gpu_large
    machine_image: ubuntu-2404-gpu
    region: RegionOne
    labels: [linux, x64, cirun-openstack-gpu-large]
    extra_config:
      env_vars: {GPUSERVER_DEMO: "1"}
`
	demoAccess = `version: 1
policies:
  - id: hello-policy
    repo: hello
    roles: [admin, maintain, write]
access_control:
  - resource: cirun-openstack-gpu-large
    policies: [hello-policy]
`
)

// populate makes the organisation, the repository and the user whose jobs run.
func (f *demoForge) populate(ctx context.Context, webhook string) error {
	steps := []func() error{
		func() error { _, err := f.AddOrg(ctx, forgetest.Org{Login: "octo"}); return err },
		func() error { _, err := f.AddUser(ctx, forgetest.User{Login: "alice"}); return err },
		func() error { _, err := f.AddRepo(ctx, forgetest.Repository{Name: demoRepo}); return err },
		func() error { _, err := f.AddRepo(ctx, forgetest.Repository{Name: "octo/.cirun"}); return err },
		func() error {
			_, err := f.SetFile(ctx, forgetest.FileChange{Repo: "octo/.cirun", Path: ".cirun.global.yml", Content: []byte(demoRunners)})
			return err
		},
		func() error {
			_, err := f.SetFile(ctx, forgetest.FileChange{Repo: "octo/.cirun", Path: ".access.yml", Content: []byte(demoAccess)})
			return err
		},
		func() error {
			return f.SetRole(ctx, forgetest.Role{Repo: demoRepo, Login: "alice", Role: "write"})
		},
		func() error { return f.Configure(ctx, forgetest.Settings{WebhookURL: &webhook, RunnerURL: &f.URL}) },
	}
	for _, s := range steps {
		if err := s(); err != nil {
			return fmt.Errorf("the stand-in for GitHub cannot be set up: %w", err)
		}
	}
	return nil
}

// identity writes the App's key and secret and gives the part of the
// configuration that names them.
func (f *demoForge) identity(ctx context.Context, dir string) (string, error) {
	app, err := f.App(ctx)
	if err != nil {
		return "", err
	}
	key, secret := filepath.Join(dir, "app.pem"), filepath.Join(dir, "webhook-secret")
	if err := os.WriteFile(key, []byte(app.PrivateKeyPEM), 0o600); err != nil {
		return "", err
	}
	if err := os.WriteFile(secret, []byte(app.WebhookSecret), 0o600); err != nil {
		return "", err
	}
	return fmt.Sprintf(`forges:
  - name: github
    type: github
    base_url: %s
    app_id: %d
    private_key: {file: %s}
    webhook_secrets: [{file: %s}]
`, f.loopback.url, app.ID, key, secret), nil
}

// dispatch starts one run with n jobs.
func (f *demoForge) dispatch(ctx context.Context, n int) (forgetest.Run, error) {
	spec := forgetest.RunSpec{Repo: demoRepo, Actor: "alice", Workflow: "Demonstration"}
	for i := range n {
		spec.Jobs = append(spec.Jobs, forgetest.JobSpec{
			Name:   fmt.Sprintf("hello-%d", i+1),
			Labels: []string{fmt.Sprintf("cirun-openstack-gpu-large--%d", i+1)},
			Steps: []runnerclient.Step{
				{Name: "Who am I", Run: "uname -a\nwhoami\necho \"run $GITHUB_RUN_ID of $GITHUB_REPOSITORY on $RUNNER_NAME\""},
				{Name: "What have I", Run: "nproc\nfree -m\ndf -h /\necho \"GPUSERVER_DEMO=$GPUSERVER_DEMO\""},
			},
		})
	}
	return f.Dispatch(ctx, spec)
}
