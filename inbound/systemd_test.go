package inbound

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// asActivated makes the test binary a process that systemd has passed sockets to; it prints what it got.
const asActivated = "UNDERSTUDY_INBOUND_ACTIVATED"

func printActivated() {
	sockets, err := SystemdSockets(os.Getpid(), os.Getenv)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for name, list := range sockets {
		for _, l := range list {
			fmt.Println(name, l.Addr())
		}
	}
}

// activate runs a process with two sockets, as systemd does: LISTEN_PID is the process itself, so a shell sets it.
func activate(t *testing.T, names string, files ...*os.File) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ exec "+os.Args[0])
	cmd.Env = append(os.Environ(), asActivated+"=1", fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+names)
	cmd.ExtraFiles = files
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func TestSystemdPassesSocketsByName(t *testing.T) {
	var files []*os.File
	var addrs []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, addrs = append(files, f), append(addrs, l.Addr().String())
	}
	got := activate(t, "smtp:admin", files...)
	for i, name := range []string{"smtp", "admin"} {
		if want := name + " " + addrs[i] + "\n"; !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}
	if got := activate(t, "", files[0]); got != "unknown "+addrs[0]+"\n" {
		t.Errorf("without names: %q", got)
	}
}

func TestSocketsForAnotherProcessAreNotTaken(t *testing.T) {
	env := map[string]string{"LISTEN_PID": "1", "LISTEN_FDS": "1"}
	if got, err := SystemdSockets(os.Getpid(), func(k string) string { return env[k] }); got != nil || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	env["LISTEN_PID"], env["LISTEN_FDS"] = fmt.Sprint(os.Getpid()), "many"
	if _, err := SystemdSockets(os.Getpid(), func(k string) string { return env[k] }); err == nil {
		t.Error("LISTEN_FDS=many was taken")
	}
}

func TestMissingSystemdSocketIsAnErrorOfListen(t *testing.T) {
	cfg := testConfig(t)
	cfg.Listen[0].Address = "systemd:smtp"
	s, err := New(cfg, Deps{Spool: &memorySpool{}, Policy: testPolicy{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err == nil || !strings.Contains(err.Error(), "systemd passed no such socket") {
		t.Errorf("got %v", err)
	}
}

func TestSeveralListenersHaveTheirOwnSwitches(t *testing.T) {
	cfg := testConfig(t)
	cfg.Listen = []Listener{{Address: "127.0.0.1:0"}, {Address: "127.0.0.1:0", Hide: []string{"starttls"}}}
	r := start(t, cfg, nil)
	for i, offered := range []bool{true, false} {
		c := dial(t, r.Addrs()[i].String())
		c.want("220")
		if got := c.say("EHLO x", "250"); strings.Contains(got, "STARTTLS") != offered {
			t.Errorf("listener %d: %q", i, got)
		}
	}
}

// A configuration's faults are found all at once, at their keys.
func TestConfigFaults(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Hostname = "mx2.example.org"
	if faults := cfg.Validate(); faults != nil {
		t.Errorf("default: %v", faults)
	}
	cfg = Config{
		Listen: []Listener{{Address: "25"}, {Address: ":25", Hide: []string{"FOO"}}}, Contact: "a\nb",
		TLS: TLS{Certificates: []Certificate{{Cert: "x"}}}, ACME: ACME{Enabled: true, Directory: "http://x"}, ContentFloor: -1,
	}
	want := "hostname listen[0] listen[1].hide[0] max_message_size max_recipients bare_newline contact max_connections " +
		"max_per_network max_per_minute max_errors max_refused max_unknown max_inline_per_client command_timeout content_window content_floor pregreet.action " +
		"tls.certificates[0] state_dir acme.listen acme.directory"
	var got []string
	for _, f := range cfg.Validate() {
		got = append(got, f.Key)
	}
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got\n%s, want\n%s", s, want)
	}
	if _, err := New(cfg, Deps{}); err == nil {
		t.Error("New took it")
	}
}
