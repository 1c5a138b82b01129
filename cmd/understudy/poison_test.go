package main

import (
	"bufio"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"understudy/internal/testkit"
)

// broken has strace break system calls of the running server, from its return until mend is called.
func (s *server) broken(t *testing.T, inject string) (mend func()) {
	t.Helper()
	args := append(strace(t, "/dev/null", "-e", inject), "-p", fmt.Sprint(s.cmd.Process.Pid))
	cmd := exec.Command(args[0], args[1:]...)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	attached, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		said := false
		for sc := bufio.NewScanner(out); sc.Scan(); {
			if strings.Contains(sc.Text(), "attached") && !said {
				said = true
				close(attached)
			}
		}
	}()
	mend = sync.OnceFunc(func() {
		cmd.Process.Kill() // the kernel lets go of the server; strace itself may leave a thread stopped
		<-ended
		cmd.Wait()
	})
	t.Cleanup(mend)
	select {
	case <-attached:
	case <-ended:
		t.Fatal("strace can't attach")
	}
	return mend
}

// onFailingDisk is a configuration of small generations.
func onFailingDisk(p *testkit.Primary) string {
	return acceptAll(p) + "\nhealthprobe: {every_down: 100ms, confirm: 20ms}\n" +
		"spool: {dir: spool, reserve: 28MiB, reserve_percent: 0, ballast: 0, generation_size: 4MiB}\n"
}

// refusedOnly holds that all that was not taken was refused for the time being: 451 if a sync failed that it hung on, or,
// before its content, 452 while there is no generation.
func (b *book) refusedOnly(t *testing.T) (unsure int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for n, answer := range b.refused {
		if strings.HasPrefix(answer, "451 4.3.0 ") {
			unsure++
		} else if !strings.HasPrefix(answer, "452 4.3.1 ") {
			t.Errorf("message %d was answered %q", n, answer)
		}
	}
	return unsure
}

func TestSyncsThatFailNowAndThenAreNever250AndNothingIsLost(t *testing.T) {
	proofs(t)
	p, b := away(t), newBook()
	s := newServer(t, onFailingDisk(p))
	file := filepath.Join(s.dir, "trace")
	// strace counts by thread: each one's tenth and then every 25th fails.
	s.under = append(strace(t, file, "-e", "inject=fdatasync:error=EIO:when=10+25"), "-D", "-qq", "--seccomp-bpf")
	s.start()
	s.until("some commits failed between others", func() bool {
		b.give(s.smtp, 6, func(n int, answer string) bool { return answer[0] == '2' && n < 5000 })
		s.until("it is ready again", func() bool { code, _ := s.get("/readyz"); return code == 200 })
		taken, _ := b.count()
		return taken >= 100 && b.refusedOnly(t) > 0
	})
	s.kill()
	all := readTrace(t, file)
	for n, id := range b.taken {
		if _, err := kept(all, n, id); err != nil {
			t.Errorf("message %d, %s: %v", n, id, err)
		}
	}
	failed := 0
	for _, c := range all {
		if c.isSync() && c.ended >= 0 && c.result != 0 {
			failed++
		}
	}
	taken, refused := b.count()
	t.Logf("%d syncs failed: %d messages got a 250, %d did not", failed, taken, refused)
	if failed == 0 {
		t.Error("no sync failed")
	}
	s.under = nil
	s.start()
	p.Start()
	s.wantAllOnce(t, p, b)
}

func TestWhileNoSyncSucceedsNothingGetsA250AndItIsSaid(t *testing.T) {
	proofs(t)
	p, b := away(t), newBook()
	s := newServer(t, onFailingDisk(p))
	s.start()
	b.give(s.smtp, 3, func(n int, answer string) bool { return n < 60 })
	taken, refused := b.count()
	if taken < 60 || refused > 0 {
		t.Fatalf("%d taken, %d refused", taken, refused)
	}
	mend := s.broken(t, "inject=fdatasync,fsync:error=EIO")
	b.give(s.smtp, 3, func(int, string) bool { return false })
	s.until("/readyz and status say so", func() bool {
		code, body := s.get("/readyz")
		out, err := s.run("status")
		return code == 503 && strings.Contains(body, "input/output error") &&
			err == nil && strings.Contains(out, "NOT READY: ") && strings.Contains(out, "input/output error")
	})
	b.give(s.smtp, 3, func(int, string) bool { return false })
	if code, body := s.get("/livez"); code != 200 {
		t.Errorf("/livez: %d %s", code, body)
	}
	mend()
	if now, refused := b.count(); now != taken || refused != 6 {
		t.Errorf("of 6 messages %d got a 250 and %d were refused while no sync succeeded", now-taken, refused)
	}
	if unsure := b.refusedOnly(t); unsure == 0 {
		t.Error("no message was answered 451: none hung on a sync that failed")
	}
	s.untilReady()
	s.takesOne(t, b)
	s.kill()
	s.start()
	p.Start()
	s.wantAllOnce(t, p, b)
}
