package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/mta"
)

// childGroup has 50 put 20 messages each.
func childGroup(dir string) error {
	s, err := childOpen(dir, slow())
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				childStore(s, 1000, "ann@example.org")
			}
		})
	}
	wg.Wait()
	return nil
}

// traced runs a child under strace and returns the trace.
func traced(t *testing.T, child, dir string, say func(string), args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "trace")
	wrap := append([]string{"strace", "-f", "-qq", "-y", "-o", out}, args...)
	_, wait := startChild(t, child, dir, wrap, say)
	if err := wait(); err != nil {
		t.Fatalf("strace: %v", err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	syncDone = regexp.MustCompile(`fdatasync(\(\d+<[^>]*/journal>\)| resumed>\)) += 0`)
	saidP    = regexp.MustCompile(`write\(1<[^>]*>, "P `)
)

// syncedFiles gives, for each message that was promised, what was synced since the one before, in order.
func syncedFiles(trace string) (since [][]string) {
	var now []string
	begun := make(map[string]string) // by thread
	for line := range strings.SplitSeq(trace, "\n") {
		thread, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		switch m := syncCall.FindStringSubmatch(call); {
		case m != nil && strings.HasSuffix(call, "<unfinished ...>"):
			begun[thread] = m[1]
		case m != nil && syncWorked.MatchString(call):
			now = append(now, m[1])
		case syncResumed.MatchString(call):
			now = append(now, begun[thread])
		case saidP.MatchString(call):
			since = append(since, now)
			now = nil
		}
	}
	return since
}

var (
	syncCall    = regexp.MustCompile(`^(?:fdatasync|fsync)\(\d+<([^>]*)>`)
	syncWorked  = regexp.MustCompile(`\) += 0$`)
	syncResumed = regexp.MustCompile(`^<\.\.\. (?:fdatasync|fsync) resumed>\) += 0$`)
)

func TestEach250ComesAfterASyncOfTheJournalAndOfItsContent(t *testing.T) {
	proofs(t)
	dir := t.TempDir()
	l := newLedger()
	since := syncedFiles(traced(t, "once", dir, l.hear, "-e", "trace=fdatasync,fsync,write"))
	large := 0
	for n, files := range since {
		last := ""
		if len(files) > 0 {
			last = files[len(files)-1]
		}
		if filepath.Base(last) != journalFile {
			t.Errorf("message %d was promised after the syncs of %v", n+1, files)
		}
		// The file, then the folder that names it, then the journal.
		i := slices.IndexFunc(files, func(f string) bool { return filepath.Base(filepath.Dir(f)) == bodiesDir })
		if i >= 0 && i+1 < len(files) && filepath.Base(files[i+1]) == bodiesDir {
			large++
		}
	}
	if len(since) != 20 || large != 5 {
		t.Errorf("%d promises traced, want 20; %d of large messages after their content was safe, want 5", len(since), large)
	}
	s := openTest(t, childConfig(dir), slow())
	defer closeTest(t, s)
	l.check(t, s)
}

func TestFiftyCommittersShareSyncs(t *testing.T) {
	proofs(t)
	l := newLedger()
	trace := traced(t, "group", t.TempDir(), l.hear, "-e", "trace=fdatasync")
	syncs := len(syncDone.FindAllString(trace, -1))
	if len(l.stored) != 1000 || syncs == 0 || syncs > 250 {
		t.Errorf("%d syncs for %d messages of 50 committers", syncs, len(l.stored))
	}
	t.Logf("%d syncs for %d messages", syncs, len(l.stored))
}

func TestAnInjectedEIOOfTheJournalsSyncLosesNothing(t *testing.T) {
	proofs(t)
	dir := t.TempDir()
	l := newLedger()
	failed := 0
	say := func(line string) {
		if strings.HasPrefix(line, "F ") {
			failed++
		}
		l.hear(line)
	}
	// strace counts by thread: each one's fourth sync and all later ones fail.
	traced(t, "once", dir, say, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=4+")
	if failed == 0 || len(l.stored) == 0 || failed+len(l.stored) != 20 {
		t.Errorf("%d failed, %d promised", failed, len(l.stored))
	}
	s := openTest(t, childConfig(dir), slow())
	defer closeTest(t, s)
	l.check(t, s)
}

// mount mounts something for a test.
func mount(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Fatalf("mount %v: %v: %s", args, err, out)
	}
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
		t.Errorf("umount %s: %v: %s", dir, err, out)
	}
}

// shutdownFS cuts the power of a mounted ext4: nothing that is not on disk gets there any more.
func shutdownFS(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const ext4Shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
	if err := unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, noLogFlush); err != nil {
		t.Fatalf("shutdown ioctl: %v", err)
	}
}

func TestPowerCutsLoseNothing(t *testing.T) {
	proofs(t)
	base := t.TempDir()
	image, disk := filepath.Join(base, "image"), filepath.Join(base, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := makeBallast(image, 768<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	dir := filepath.Join(disk, "spool")
	l := newLedger()
	for range rounds(20) {
		mount(t, "-o", "loop", image, disk)
		cmd, wait := startChild(t, "load", dir, nil, l.hear)
		select {
		case <-l.heard:
		case <-time.After(30 * time.Second):
			t.Error("the child does nothing")
		}
		<-time.After(300 * time.Millisecond)
		// The processor stops with the disk: one that goes on would be told by ext4 that a sync succeeded which the cut
		// undid, where the extents that it wrote to could not be marked as written any more.
		if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
			t.Error(err)
		}
		shutdownFS(t, disk)
		cmd.Process.Kill()
		wait()
		unmount(t, disk)
		mount(t, "-o", "loop", image, disk)
		s := openTest(t, childConfig(dir), slow())
		l.check(t, s)
		closeTest(t, s)
		drainSome(t, l, dir)
		unmount(t, disk)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d messages promised, %d settled", len(l.stored), len(l.ended))
}

// fillDisk takes all that is left, as another program would.
func fillDisk(dir string) (string, error) {
	path := filepath.Join(dir, "junk")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for b := make([]byte, 64<<10); len(b) > 0; {
		if _, err := f.Write(b); errors.Is(err, unix.ENOSPC) {
			b = b[:len(b)/2]
		} else if err != nil {
			return "", err
		}
	}
	return path, nil
}

func fullConfig(dir string) Config {
	cfg := childConfig(dir)
	cfg.Reserve, cfg.Ballast = 4*mta.MiB, 20*mta.MiB
	return cfg
}

// childFull fills a small disk with mail until it is refused, has another program take the rest, and drains. A SIGBUS
// would end it.
func childFull(dir string) error {
	ctx := context.Background()
	s, err := open(ctx, fullConfig(dir), newStderrLog(), newMetrics(nil), quick())
	if err != nil {
		return err
	}
	put := func(n int) error {
		_, err := childStore(s, n, "ann@example.org")
		return err
	}
	for i := 0; err == nil; i++ {
		err = put([]int{4000, 100000, 400000}[i%3])
	}
	if r, ok := errors.AsType[*mta.Reply](err); !ok || r.Code != 452 {
		return fmt.Errorf("a full disk is said as %w", err)
	}
	if _, err := fillDisk(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := put(10); err == nil {
		return errors.New("a put onto a full disk worked")
	}
	fmt.Println("full")
	for range 20 { // a good part, not all: the next start has something to do
		leases, err := s.Claim(ctx, mta.ClaimRequest{Dest: "example.org", Max: 4, Lease: time.Hour})
		if err != nil {
			return err
		}
		for _, l := range leases {
			if err := childRead(s, l.ID); err != nil {
				return err
			}
			if err := childSettled(s, []mta.Lease{l}, []mta.Settlement{settlement(l, mta.Delivered, 250)}); err != nil {
				return err
			}
		}
	}
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

func childRead(s *Store, id mta.ID) error {
	r, err := s.Body(context.Background(), id)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = new(bytes.Buffer).ReadFrom(r)
	return err
}

func TestAFullDiskIsNoSIGBUS(t *testing.T) {
	proofs(t)
	disk := t.TempDir()
	mount(t, "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk)
	defer unmount(t, disk)
	dir := filepath.Join(disk, "spool")
	l := newLedger()
	full := false
	_, wait := startChild(t, "full", dir, nil, func(line string) { full = full || line == "full"; l.hear(line) })
	if err := wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child ended with %v, want its own kill", err)
	}
	if !full || len(l.stored) < 10 || len(l.ended) < 10 {
		t.Fatalf("full %v, %d promised, %d settled", full, len(l.stored), len(l.ended))
	}
	if _, err := fillDisk(disk); err != nil { // what the kill set free
		t.Fatal(err)
	}
	if s, err := open(t.Context(), fullConfig(dir), testLog(t), newMetrics(nil), slow()); err == nil {
		crash(s)
	} else if !errors.Is(err, errNoSpace) { // the ballast is gone: clear, and no harm done
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(disk, "junk"), 0); err != nil {
		t.Fatal(err)
	}
	s := openTest(t, fullConfig(dir), quick())
	waitFor(t, "the ballast", func() bool {
		fi, err := os.Stat(filepath.Join(dir, ballastFile))
		return err == nil && fi.Size() == int64(fullConfig(dir).Ballast) || len(deleteOne(t, s, l)) == 0
	})
	crash(s)
	if _, err := fillDisk(disk); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, fullConfig(dir), slow()) // on a full disk, with the ballast
	l.check(t, s)
	if u, err := s.Usage(t.Context()); err != nil || u.Messages < 10 || u.DiskFree > int64(fullConfig(dir).Ballast) {
		t.Fatalf("%+v %v: that shows nothing", u, err)
	}
	if err := drainAll(t.Context(), s, 4); err != nil {
		t.Fatal(err)
	}
	wantMessages(t, s, 0)
	crash(s)
	s = openTest(t, fullConfig(dir), slow())
	wantMessages(t, s, 0)
	closeTest(t, s)
}

// deleteOne makes some room.
func deleteOne(t *testing.T, s *Store, l *ledger) []mta.ID {
	t.Helper()
	ids, err := s.allIDs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(ids) > 0 {
		l.end(ids[0])
		if _, err := s.Apply(t.Context(), Delete, time.Time{}, Key{ID: ids[0]}); err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

// childFiles runs out of descriptors while it puts.
func childFiles(dir string) error {
	ctx := context.Background()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 120, Max: 120}); err != nil {
		return err
	}
	s, err := open(ctx, childConfig(dir), newStderrLog(), newMetrics(nil), quick())
	if err != nil {
		return err
	}
	put := func(n int) error {
		_, err := childStore(s, n, "ann@example.org")
		return err
	}
	s.crowded.Store(false)
	for round := range 3 {
		var taken []*os.File
		for {
			f, err := os.Open("/dev/null")
			if err != nil {
				break
			}
			taken = append(taken, f)
		}
		failed := 0
		for range 200 { // more than a generation holds
			if put(60000) != nil {
				failed++
			}
		}
		for _, f := range taken {
			f.Close()
		}
		if round == 0 && failed == 0 {
			return errors.New("no put failed without descriptors")
		}
		limit := time.Now().Add(30 * time.Second)
		for err := put(100); err != nil; err = put(100) {
			if time.Now().After(limit) {
				return fmt.Errorf("with descriptors again: %w", err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

func TestWithoutDescriptorsNothingEndsAndNothingIsLost(t *testing.T) {
	dir := t.TempDir()
	l := newLedger()
	_, wait := startChild(t, "files", dir, nil, l.hear)
	if err := wait(); err != nil {
		t.Fatalf("the child ended with %v", err)
	}
	s := openTest(t, childConfig(dir), slow())
	defer closeTest(t, s)
	l.check(t, s)
	if len(l.stored) < 5 {
		t.Errorf("%d promised", len(l.stored))
	}
}
