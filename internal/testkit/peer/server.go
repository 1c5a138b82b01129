package peer

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// server is a program that serves in the foreground, as an unprivileged user unless it wants root, with all its files below
// one folder.
type server struct {
	Addr string // where it listens, also while it is stopped
	dir  string
	t    testing.TB
	argv []string
	root bool
	cmd  *exec.Cmd
}

// newServer makes a folder that belongs to the unprivileged user. The program is stopped after the test.
func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{Addr: FreeAddr(t), dir: Dir(t), t: t}
	if err := os.Chown(s.dir, mailUID, mailUID); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

// command makes a command that does not run as root, as databases want it, unless the program wants to be root.
func (s *server) command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !s.root {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: mailUID, Gid: mailUID}
	}
	return cmd
}

// prepare runs a program to its end.
func (s *server) prepare(argv ...string) {
	s.t.Helper()
	if out, err := s.command(argv...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", argv[0], err, out)
	}
}

// Start starts it and returns when it takes connections.
func (s *server) Start() {
	s.t.Helper()
	s.cmd = s.command(s.argv...)
	said, err := os.OpenFile(s.path("said"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644) // no pipe: its children may outlive it
	if err != nil {
		s.t.Fatal(err)
	}
	defer said.Close()
	s.cmd.Stdout, s.cmd.Stderr = said, said
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.listening(s.Addr)
}

// listening waits until it takes connections at addr.
func (s *server) listening(addr string) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) { // a real process: only its port tells
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s does not listen at %s: %v\n%s", s.argv[0], addr, err, s.Log())
		}
	}
}

// Log is what it wrote.
func (s *server) Log() string {
	b, _ := os.ReadFile(s.path("said"))
	return string(b)
}

// Stop stops it if it runs, and returns when it is gone, with its children.
func (s *server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGINT)
	late := time.AfterFunc(10*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer late.Stop()
	_ = s.cmd.Wait()
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // it leads its process group
	s.cmd = nil
}
