// Package peer runs real mail programs for tests: Postfix, Exim and OpenSMTPD as a primary or as a sender, Dovecot's
// LMTP, content filters, databases, from Debian's packages, on loopback, each with a configuration and files of its own.
//
// Tests that need one call Require first. Without UNDERSTUDY_PEERS=1 in the environment such a test is skipped; with
// it, a program that is missing is a failure. CI sets it.
package peer

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Require skips the test unless real peers were asked for, and fails it when one of the programs is missing or the
// test does not run as root, which mail servers want.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	if os.Getenv("UNDERSTUDY_PEERS") == "" {
		t.Skip("needs real mail servers: set UNDERSTUDY_PEERS=1 to require them")
	}
	if os.Getuid() != 0 {
		t.Fatal("tests with real mail servers run as root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("UNDERSTUDY_PEERS is set: %v", err)
		}
	}
}

// Dir is a folder that the peers' own users can enter, removed after the test. (The folders of testing.T are for the
// user who runs it alone.)
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "understudy-peer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// program is one that can't be installed beside Postfix: CI unpacks these below UNDERSTUDY_PEERS_DIR.
func program(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("UNDERSTUDY_PEERS_DIR")
	if dir == "" {
		dir = "/var/tmp/understudy-peers"
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("UNDERSTUDY_PEERS is set: %v", err)
	}
	return path
}

// Maildir reads the messages of a folder. Newlines are as in a file: LF.
func Maildir(t testing.TB, dir string) [][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // nothing was delivered yet
	}
	var all [][]byte
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// FreeAddr is a loopback address whose port was free a moment ago.
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func write(t testing.TB, name string, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
