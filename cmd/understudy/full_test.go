package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy/internal/testkit"
)

// smallDisk is a file system of its own, unmounted at the end of the test.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
	return dir
}

// others take all that is left on a disk, as another program would.
func others(t *testing.T, disk string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(disk, "others"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 64<<10); len(b) > 0; {
		if _, err := f.Write(b); errors.Is(err, unix.ENOSPC) {
			b = b[:len(b)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// othersGo gives back what others took.
func othersGo(t *testing.T, disk string) {
	t.Helper()
	if err := os.Remove(filepath.Join(disk, "others")); err != nil {
		t.Fatal(err)
	}
}

// onSmallDisk is a configuration whose spool and temporary files share a small disk. Reserve and ballast are more than the
// least: a generation that there is no room to open yet is tried again after ten seconds.
func onSmallDisk(p *testkit.Primary, disk string) string {
	return fmt.Sprintf("domains: {example.org: {accept_all: true, while_up: accept, primaries: [%q]}}\nhealthprobe: {every_down: 100ms, confirm: 20ms}\n"+
		"spool: {dir: %q, reserve: 44MiB, reserve_percent: 0, ballast: 24MiB, generation_size: 4MiB}\n", p.Addr(), filepath.Join(disk, "spool"))
}

// fill gives messages until the disk is full, and checks how that is said: to clients and to the operator. What is closed
// or given up gives some room back, so it is asked for again until all agree.
func (s *server) fill(t *testing.T, b *book) {
	t.Helper()
	before, _ := b.count()
	s.until("the disk is full, and the operator is told so", func() bool {
		b.give(s.smtp, 4, func(_ int, answer string) bool { return answer[0] == '2' })
		code, body := s.get("/readyz")
		out, err := s.run("status")
		_, checked := s.run("status", "--check")
		return code == 503 && strings.Contains(body, "are kept in reserve") && err == nil &&
			strings.Contains(out, "NOT READY: ") && strings.Contains(out, "are kept in reserve") && checked != nil
	})
	taken, refused := b.count()
	if taken < before+20 || refused == 0 {
		t.Fatalf("%d taken, %d refused before the disk was full", taken-before, refused)
	}
	for n, answer := range b.refused {
		if !strings.HasPrefix(answer, "452 4.3.1 ") {
			t.Errorf("message %d was refused with %q, want 452 4.3.1", n, answer)
		}
	}
	if code, body := s.get("/livez"); code != 200 {
		t.Errorf("/livez of a full disk: %d %s", code, body)
	}
}

func (s *server) untilDrained() {
	s.t.Helper()
	s.until("the queue is empty", func() bool { return s.waiting() == 0 })
	if s.held() != 0 {
		s.t.Errorf("%d messages are held", s.held())
	}
}

// wantAllOnce waits until nothing waits, and wants all that was taken to have come once.
func (s *server) wantAllOnce(t *testing.T, p *testkit.Primary, b *book) {
	t.Helper()
	s.untilDrained()
	if doubles := b.arrived(t, p); doubles > 0 {
		t.Errorf("%d messages came twice", doubles)
	}
	s.stop()
}

// takesOne gives one message, which must be taken.
func (s *server) takesOne(t *testing.T, b *book) {
	t.Helper()
	b.give(s.smtp, 1, func(n int, answer string) bool {
		if !strings.Contains(answer, "queued as") {
			t.Errorf("message %d: %q, want a 250 of ours", n, answer)
		}
		return false
	})
}

func TestAFullDiskRefusesNewMailAndDeliversTheRest(t *testing.T) {
	proofs(t)
	for _, toTheLastOctet := range []bool{false, true} {
		t.Run(fmt.Sprintf("others take the rest: %v", toTheLastOctet), func(t *testing.T) {
			disk, p, b := smallDisk(t, "96m"), away(t), newBook()
			s := newServer(t, onSmallDisk(p, disk))
			s.start()
			s.fill(t, b)
			if toTheLastOctet {
				others(t, disk)
			}
			p.Start()
			s.untilDrained()
			if toTheLastOctet {
				othersGo(t, disk)
			}
			s.untilReady()
			if out, err := s.run("status", "--check"); err != nil {
				t.Errorf("status --check after the drain: %v\n%s", err, out)
			}
			taken, _ := b.count()
			s.takesOne(t, b)
			s.until("it was delivered, too", func() bool { return p.Accepted() > taken })
			s.untilDrained()
			if doubles := b.arrived(t, p); doubles > 0 {
				t.Errorf("%d messages came twice", doubles)
			}
			t.Logf("%d messages filled the disk", taken)
			s.stop()
		})
	}
}

func TestADiskThatOthersFilledToTheLastOctetIsOpenedAndDrained(t *testing.T) {
	proofs(t)
	disk, p, b := smallDisk(t, "96m"), away(t), newBook()
	s := newServer(t, onSmallDisk(p, disk))
	s.start()
	s.fill(t, b)
	s.kill()
	others(t, disk)
	s.launch()
	s.until("it is up", func() bool {
		_, err := s.admin.Status(context.Background())
		return err == nil
	})
	if code, body := s.get("/readyz"); code != 503 {
		t.Errorf("/readyz on a full disk: %d %s", code, body)
	}
	if out, err := s.run("status"); err != nil || !strings.Contains(out, "NOT READY: ") {
		t.Errorf("status on a full disk: %v\n%s", err, out)
	}
	b.give(s.smtp, 1, func(n int, answer string) bool {
		if !strings.HasPrefix(answer, "452 4.3.1 ") {
			t.Errorf("message %d on a full disk: %q", n, answer)
		}
		return false
	})
	p.Start()
	s.untilDrained()
	othersGo(t, disk)
	s.untilReady()
	s.takesOne(t, b)
	s.wantAllOnce(t, p, b)
}

func TestAFullDiskWithoutBallastIsNamedAtTheStartAndLosesNothing(t *testing.T) {
	proofs(t)
	disk, p, b := smallDisk(t, "96m"), away(t), newBook()
	s := newServer(t, onSmallDisk(p, disk))
	s.start()
	s.fill(t, b)
	s.kill()
	if err := os.Remove(filepath.Join(disk, "spool", "ballast")); err != nil {
		t.Fatal(err)
	}
	others(t, disk)
	if out, err := s.run("serve"); err == nil || !strings.Contains(out, "disk is full") && !strings.Contains(out, "no space left") {
		t.Errorf("start on a full disk without ballast: %v\n%s", err, out)
	}
	othersGo(t, disk)
	p.Start()
	s.start()
	s.wantAllOnce(t, p, b)
}
