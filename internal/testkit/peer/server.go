package peer

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// server is a program that serves in the foreground, as an unprivileged user, with all its files below one folder.
type server struct {
	Addr string // where it listens, also while it is stopped
	dir  string
	t    testing.TB
	argv []string
	cmd  *exec.Cmd
	said said
}

// said is what a program wrote.
type said struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
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

// unprivileged makes a command that does not run as root, as databases want it.
func (s *server) unprivileged(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + s.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: mailUID, Gid: mailUID},
	}
	return cmd
}

// prepare runs a program to its end.
func (s *server) prepare(argv ...string) {
	s.t.Helper()
	if out, err := s.unprivileged(argv...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", argv[0], err, out)
	}
}

// Start starts it and returns when it takes connections.
func (s *server) Start() {
	s.t.Helper()
	s.cmd = s.unprivileged(s.argv...)
	s.cmd.Stdout, s.cmd.Stderr = &s.said, &s.said
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
			s.t.Fatalf("%s does not listen at %s: %v\n%s", s.argv[0], addr, err, s.said.String())
		}
	}
}

// Log is what it wrote.
func (s *server) Log() string { return s.said.String() }

// Stop stops it if it runs, and returns when it is gone.
func (s *server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGINT)
	late := time.AfterFunc(10*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer late.Stop()
	_ = s.cmd.Wait()
	s.cmd = nil
}
