package healthprobe

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/smtpc"
	"understudy/internal/testkit/peer"
)

// realConfig is the default with shorter patience, so that a test of real processes ends soon.
func realConfig() Config {
	cfg := DefaultConfig()
	cfg.Every = time.Second
	cfg.EveryDown = 200 * time.Millisecond
	cfg.DialTimeout = 500 * time.Millisecond
	cfg.Timeout = 1500 * time.Millisecond
	cfg.FlapFalls = 100
	return cfg
}

// expect waits for a state, within a limit, and wants its cause.
func expect(t *testing.T, p *Prober, primary string, limit time.Duration, state State, step, why string) {
	t.Helper()
	began := time.Now()
	await(t, p, state.String(), func() bool { return p.one(primary).State == state })
	took := time.Since(began)
	s := p.one(primary)
	if s.Step != step || !strings.Contains(s.Why, why) {
		t.Errorf("%v at %q: %q, want at %q: %q", s.State, s.Step, s.Why, step, why)
	}
	if took > limit {
		t.Errorf("%v after %v, want within %v", state, took, limit)
	}
	t.Logf("%v after %v (%s %s)", state, took.Round(time.Millisecond), s.Step, s.Why)
}

// The slowest ways to see that something is wrong, and that it is well again, by realConfig.
const (
	seesFall  = 6500 * time.Millisecond // 1.1 s of quiet, then three probes of 1.5 s
	seesRise  = 1500 * time.Millisecond
	seesClear = 3500 * time.Millisecond // a probe that hangs must end first
)

func TestARealPostfix(t *testing.T) {
	pf := peer.NewPostfix(t, nil)
	p := start(t, realConfig(), map[string]Domain{"example.org": {Primaries: []string{pf.Addr}}}, Deps{})
	expect(t, p, pf.Addr, seesRise, Down, "dial", "connection refused")
	pf.Start()
	expect(t, p, pf.Addr, seesRise, Up, "", "")
	if b := p.Bounds("example.org"); !b.Known || b.Size != 104857600-traceRoom || !b.EightBitMIME || b.RequireTLS {
		t.Errorf("bounds are %+v", b)
	}

	pf.Stop()
	expect(t, p, pf.Addr, seesFall, Down, "dial", "connection refused")
	pf.Start()
	expect(t, p, pf.Addr, seesRise, Up, "", "")

	pf.Freeze()
	expect(t, p, pf.Addr, seesFall, Down, "banner", "no answer in time")
	pf.Thaw()
	expect(t, p, pf.Addr, seesClear, Up, "", "")

	pf.Reconfigure("queue_minfree=1000000000000000")
	expect(t, p, pf.Addr, seesFall, Refusing, "mail", "452 4.3.1 Insufficient system storage")
	pf.Reconfigure("queue_minfree=0")
	expect(t, p, pf.Addr, seesRise, Up, "", "")

	pf.Reconfigure("smtpd_client_restrictions=reject")
	expect(t, p, pf.Addr, seesFall, Refusing, "rcpt", "554 5.7.1")
	pf.Reconfigure("smtpd_client_restrictions=")
	expect(t, p, pf.Addr, seesRise, Up, "", "")

	if n := pf.Delivered(); n != 0 {
		t.Errorf("the probes sent %d messages", n)
	}
	for _, o := range p.Outages(OutageQuery{}) {
		t.Logf("%v %s", o.End.Sub(o.Begin).Round(time.Millisecond), o.Cause())
	}
	if n := len(p.Outages(OutageQuery{})); n != 5 {
		t.Errorf("%d outages were noted, want 5", n)
	}
}

// TestARealPostfixBehindADroppedRoute looks at Postfix from a network namespace of its own, whose neighbour entry for
// the server is bent for a while: what is sent there vanishes.
func TestARealPostfixBehindADroppedRoute(t *testing.T) {
	peer.Require(t, "ip", "postfix")
	ns := newNamespace(t)
	pf := peer.NewPostfix(t, map[string]string{"inet_interfaces": ns.outside, "mynetworks": "10.0.0.0/8"})
	listenAt(t, pf, net.JoinHostPort(ns.outside, "2525"))
	pf.Start()
	d := &smtpc.Dialer{Hostname: "mx2.example.org", Net: ns.dial}
	p := start(t, realConfig(), map[string]Domain{"example.org": {Primaries: []string{pf.Addr}}}, Deps{Dialer: d})
	expect(t, p, pf.Addr, seesRise, Up, "", "")
	ns.drop()
	expect(t, p, pf.Addr, seesFall, Down, "dial", "no answer in time")
	ns.restore()
	expect(t, p, pf.Addr, seesClear, Up, "", "")
}

// listenAt moves a Postfix to another address.
func listenAt(t *testing.T, pf *peer.Postfix, addr string) {
	t.Helper()
	file := filepath.Join(pf.ConfigDir(), "master.cf")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(b), pf.Addr, addr, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	pf.Addr = addr
}

// namespace is a network namespace with one wire to the outside.
type namespace struct {
	t             *testing.T
	name, link    string
	outside, mac  string // the address at the other end of the wire, and whose it is
	insideAddress string
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	id := os.Getpid() % 60000
	ns := &namespace{
		t: t, name: fmt.Sprintf("us-probe-%d", id), link: fmt.Sprintf("usp%d", id),
		outside: fmt.Sprintf("10.77.%d.%d", id/250, id%250/2*2+1), insideAddress: fmt.Sprintf("10.77.%d.%d", id/250, id%250/2*2),
	}
	ns.ip("netns", "add", ns.name)
	t.Cleanup(func() { ns.ip("netns", "del", ns.name) }) // and the wire goes with it
	ns.ip("link", "add", ns.link, "type", "veth", "peer", "name", "out", "netns", ns.name)
	ns.ip("addr", "add", ns.outside+"/31", "dev", ns.link)
	ns.ip("link", "set", ns.link, "up")
	ns.ip("-n", ns.name, "addr", "add", ns.insideAddress+"/31", "dev", "out")
	ns.ip("-n", ns.name, "link", "set", "out", "up")
	iface, err := net.InterfaceByName(ns.link)
	if err != nil {
		t.Fatal(err)
	}
	ns.mac = iface.HardwareAddr.String()
	return ns
}

func (ns *namespace) ip(args ...string) {
	ns.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		ns.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// drop has everything to the outside sent to nobody.
func (ns *namespace) drop() { ns.neighbour("02:00:00:00:00:99") }

func (ns *namespace) restore() { ns.neighbour(ns.mac) }

func (ns *namespace) neighbour(mac string) {
	ns.t.Helper()
	ns.ip("-n", ns.name, "neigh", "replace", ns.outside, "lladdr", mac, "nud", "permanent", "dev", "out")
}

// dial connects from within the namespace.
func (ns *namespace) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, as it is spoilt for others
		if err := ns.enter(); err != nil {
			done <- result{nil, err}
			return
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, network, addr)
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}

func (ns *namespace) enter() error {
	f, err := os.Open("/var/run/netns/" + ns.name)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}
