package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"understudy/internal/admin"
	"understudy/internal/testkit/peer"
)

// beProgram in the environment makes the test binary the program itself.
const beProgram = "UNDERSTUDY_TEST_IS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(beProgram) != "" {
		main()
		return
	}
	testscript.Main(m, map[string]func(){"understudy": main})
}

// server is a running `understudy serve`, the real program in a process of its own.
type server struct {
	t      testing.TB
	dir    string
	config string   // path of the file
	smtp   string   // where it takes mail
	under  []string // a command that `serve` is run under, such as strace; it must keep the process's id
	admin  *admin.Client
	log    *bytes.Buffer // all starts; read it only while the process is not running
	cmd    *exec.Cmd
}

// newServer writes a configuration with the given rest below the usual head. DIR in it is the server's folder.
func newServer(t testing.TB, rest string) *server {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, dir: dir, config: filepath.Join(dir, "understudy.yaml"), smtp: peer.FreeAddr(t), log: new(bytes.Buffer)}
	s.admin = admin.NewClient(filepath.Join(dir, "admin.sock"), "")
	s.configure(rest)
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", tail(s.log.String(), 4000))
		}
	})
	return s
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// configure writes the configuration anew. A section in rest takes the place of the usual one.
func (s *server) configure(rest string) {
	s.t.Helper()
	head := "hostname: mx2.example.org\nadmin: {socket: admin.sock}\n"
	if !strings.Contains(rest, "spool: {") {
		head += "spool: {dir: spool}\n"
	}
	if !strings.Contains(rest, "inbound:") {
		rest += "\ninbound:\n  listen: [\"SMTP\"]\n"
	}
	rest = strings.NewReplacer("DIR", s.dir, "SMTP", s.smtp).Replace(rest)
	s.write("understudy.yaml", head+rest)
}

func (s *server) write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) command(args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{"--config", s.config}, args...)...)
	cmd.Env = append(os.Environ(), beProgram+"=1")
	return cmd
}

// start starts it and returns when it is ready.
func (s *server) start() {
	s.t.Helper()
	s.launch()
	s.untilReady()
}

// launch starts it and does not wait for anything.
func (s *server) launch() {
	s.t.Helper()
	s.cmd = s.command("serve")
	if len(s.under) > 0 {
		path, err := exec.LookPath(s.under[0])
		if err != nil {
			s.t.Fatal(err)
		}
		s.cmd.Args = append(s.under[:len(s.under):len(s.under)], append([]string{s.cmd.Path}, s.cmd.Args[1:]...)...)
		s.cmd.Path = path
	}
	s.cmd.Stderr = s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) untilReady() {
	s.t.Helper()
	s.until("it is ready", func() bool {
		st, err := s.admin.Status(context.Background())
		return err == nil && st.Ready
	})
}

// stop ends it by SIGTERM and wants exit code 0.
func (s *server) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Fatalf("after SIGTERM: %v", err)
	}
	s.cmd = nil
}

// kill ends it by SIGKILL, if it runs.
func (s *server) kill() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.cmd = nil
}

// limit is the longest that a test waits for what comes true by itself.
const limit = 30 * time.Second

func (s *server) until(what string, holds func() bool) {
	s.t.Helper()
	until(s.t, what, limit, holds)
}

func listens(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err == nil {
		c.Close()
	}
	return err == nil
}

func until(t testing.TB, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain until %s", limit, what)
		}
	}
}

func (s *server) status() admin.Status {
	s.t.Helper()
	st, err := s.admin.Status(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// waiting is the number of messages in the queue, the held ones not counted.
func (s *server) waiting() int64 {
	s.t.Helper()
	var n int64
	for _, d := range s.status().Domains {
		n += d.Messages
	}
	return n
}

// held is the number of held messages in the queue.
func (s *server) held() int64 {
	s.t.Helper()
	var n int64
	for _, d := range s.status().Domains {
		n += d.Held
	}
	return n
}

func (s *server) untilPrimary(state string) {
	s.t.Helper()
	s.until("the primary is "+state, func() bool {
		p := s.status().Primaries
		return len(p) > 0 && p[0].State == state
	})
}

// get asks the admin API over its socket, as curl --unix-socket would.
func (s *server) get(path string) (int, string) {
	s.t.Helper()
	c := http.Client{Timeout: limit, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(s.dir, "admin.sock"))
	}}}
	resp, err := c.Get("http://understudy" + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}

// run runs another command of the program against this server.
func (s *server) run(args ...string) (string, error) {
	s.t.Helper()
	out, err := s.command(args...).CombinedOutput()
	return string(out), err
}

// runJSON runs a command with --json and reads its answer.
func (s *server) runJSON(v any, args ...string) {
	s.t.Helper()
	out, err := s.run(append(args, "--json")...)
	if err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// numbered is a message that can be told from any other.
func numbered(n int) []byte {
	return fmt.Appendf(nil, "From: alice@example.net\r\nTo: bob@example.org\r\nSubject: no. %06d\r\nMessage-ID: <%06d@example.net>\r\n"+
		"Date: Mon, 23 Nov 2026 12:00:00 +0000\r\n\r\n"+
		"Line one of %d.\r\n..a line with a dot\r\n\r\n8-bit: caf\xc3\xa9\r\n", n, n, n)
}
