package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy/internal/testkit/peer"
)

// traced is one system call of a trace. begun and ended are lines of it: what began behind the end of another call
// began after it.
type traced struct {
	name, path   string // path is of the first argument
	args         string // as far as strace writes them down
	begun, ended int
	result       int // -1: it failed, or never ended
}

var (
	traceCall    = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<([^>]*)>(.*)$`)
	traceResumed = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>`)
	traceResult  = regexp.MustCompile(`\) += (-?\d+)[^"]*$`)
)

// readTrace reads what `strace -f -y -o` wrote.
func readTrace(t *testing.T, file string) []*traced {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []*traced
	open := map[string]*traced{} // by thread
	for i, line := range strings.Split(string(b), "\n") {
		var c *traced
		if m := traceCall.FindStringSubmatch(line); m != nil {
			c = &traced{name: m[2], path: m[3], args: m[4], begun: i, ended: -1, result: -1}
			all = append(all, c)
			open[m[1]] = c
		} else if m := traceResumed.FindStringSubmatch(line); m != nil {
			c = open[m[1]]
		}
		if m := traceResult.FindStringSubmatch(line); m != nil && c != nil && !strings.HasSuffix(line, "<unfinished ...>") {
			c.ended = i
			c.result, _ = strconv.Atoi(m[1])
		}
	}
	return all
}

// last is the last call that ended before a line and that f wants, or nil.
func last(all []*traced, before int, f func(*traced) bool) (found *traced) {
	for _, c := range all {
		if c.ended >= 0 && c.ended < before && f(c) {
			found = c
		}
	}
	return found
}

func (c *traced) isSync() bool  { return c.name == "fdatasync" || c.name == "fsync" }
func (c *traced) isWrite() bool { return strings.Contains(c.name, "write") || c.name == "sendto" }

// synced finds the first sync of path that began after one line, succeeded and ended before another, and that no sync of
// the path which failed came before: what is synced once more after that was not promised to be safe.
func synced(all []*traced, path string, after, before int) *traced {
	for _, c := range all {
		if !c.isSync() || c.path != path || c.ended < 0 || c.ended >= before {
			continue
		}
		if c.result != 0 {
			return nil
		}
		if c.begun > after {
			return c
		}
	}
	return nil
}

// promise is a message that got a 250, as it is found in a trace.
type promise struct {
	said   *traced // what its 250 was written by
	record *traced // what its record was written by, to a journal, and its content too if it is not large
}

// kept follows one message through a trace: everything of it was written, and then synced, before its 250 was.
func kept(all []*traced, n int, id string) (p promise, err error) {
	p.said = last(all, math.MaxInt, func(c *traced) bool { return c.isWrite() && strings.Contains(c.args, "queued as "+id) })
	if p.said == nil || !strings.HasPrefix(p.said.path, "socket:") {
		return p, fmt.Errorf("its 250 is not in the trace (%+v)", p.said)
	}
	inRecord := fmt.Sprintf(`sender-%06d\vexample.net`, n) // in the content the two are together
	p.record = last(all, p.said.begun, func(c *traced) bool {
		return c.isWrite() && filepath.Base(c.path) == "journal" && c.result > 0 && strings.Contains(c.args, inRecord)
	})
	if p.record == nil {
		return p, fmt.Errorf("no record of it was written before its 250")
	}
	if synced(all, p.record.path, p.record.ended, p.said.begun) == nil {
		return p, fmt.Errorf("%s was not synced between its record and its 250", p.record.path)
	}
	if len(sized(n)) > 128<<10 {
		return p, fileKept(all, id, p.record.begun)
	}
	if !strings.Contains(p.record.args, fmt.Sprintf("Subject: no. %06d", n)) {
		return p, fmt.Errorf("its content is not beside its record")
	}
	return p, nil
}

// fileKept is kept for content in a file of its own, which must be safe before the record is written.
func fileKept(all []*traced, id string, before int) error {
	content := last(all, before, func(c *traced) bool { return c.isWrite() && strings.Contains(c.path, "/bodies/"+id) })
	if content == nil {
		return fmt.Errorf("no content of it was written before its record")
	}
	file := synced(all, content.path, content.ended, before)
	if file == nil {
		return fmt.Errorf("%s was not synced between its content and its record", content.path)
	}
	if synced(all, filepath.Dir(content.path), file.ended, before) == nil {
		return fmt.Errorf("the folder of %s was not synced before its record", content.path)
	}
	return nil
}

// found is about a journal that was made within the trace: its name and its folder's were synced before the 250.
func (p promise) found(all []*traced) error {
	made := all[slices.IndexFunc(all, func(c *traced) bool { return c.isWrite() && c.path == p.record.path })]
	folder := filepath.Dir(p.record.path)
	for _, dir := range []string{folder, filepath.Dir(folder)} {
		if synced(all, dir, made.ended, p.said.begun) == nil {
			return fmt.Errorf("%s was not synced between the making of the journal and its 250", dir)
		}
	}
	return nil
}

// watched are the calls that a promise hangs on.
const watched = "trace=fdatasync,fsync,write,writev,pwrite64,pwritev,pwritev2,sendto"

// strace traces a process and all its threads to a file.
func strace(t *testing.T, file string, more ...string) []string {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatalf("UNDERSTUDY_PROOFS is set: %v", err)
	}
	return append([]string{"strace", "-f", "-y", "-s", "2048", "-o", file, "-e", watched}, more...)
}

func TestOnTheWireEach250ComesAfterTheSyncOfWhatItPromises(t *testing.T) {
	proofs(t)
	for _, tt := range []struct {
		name              string
		clients, messages int
		more              []string
	}{
		{name: "one session", clients: 1, messages: 40},
		// On a disk that takes its time those who come meanwhile share the next sync.
		{name: "20 sessions", clients: 20, messages: 600, more: []string{"-e", "inject=fdatasync:delay_enter=5000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t, fmt.Sprintf("domains: {example.org: {accept_all: true, primaries: [%q]}}\nspool: {dir: spool, reserve: 28MiB, reserve_percent: 0, ballast: 0, generation_size: 4MiB}\n", peer.FreeAddr(t)))
			file := filepath.Join(s.dir, "trace")
			s.under = append(strace(t, file, tt.more...), "-D", "-qq", "--seccomp-bpf") // -D: the server keeps its process id
			s.start()
			b := newBook()
			b.give(s.smtp, tt.clients, func(n int, answer string) bool { return n < tt.messages })
			s.stop()
			taken, refused := b.count()
			if taken < tt.messages || refused > 0 {
				t.Fatalf("%d taken, %d refused: %v", taken, refused, b.refused)
			}
			all := readTrace(t, file)
			for n, id := range b.taken {
				p, err := kept(all, n, id)
				if err == nil {
					err = p.found(all)
				}
				if err != nil {
					t.Errorf("message %d, %s: %v", n, id, err)
				}
			}
			syncs, journals := 0, map[string]bool{}
			for _, c := range all {
				if c.isSync() && filepath.Base(c.path) == "journal" && c.name == "fdatasync" {
					syncs++
					journals[c.path] = true
				}
			}
			t.Logf("%d messages, %d syncs of %d journals, %d calls", taken, syncs, len(journals), len(all))
			if tt.clients > 1 && syncs > taken/3 {
				t.Errorf("%d syncs for %d messages of %d clients: they are not shared", syncs, taken, tt.clients)
			}
			if tt.clients > 1 && len(journals) < 3 {
				t.Errorf("only %v were written to: the journal never changed under load", journals)
			}
		})
	}
}
