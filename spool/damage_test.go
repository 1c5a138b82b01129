package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"understudy/internal/mta"
)

func newStderrLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// alarms counts error lines.
type alarms struct {
	slog.Handler
	n *atomic.Int64
}

func (a alarms) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		a.n.Add(1)
	}
	return a.Handler.Handle(ctx, r)
}

// childScan opens a folder that may be damaged, reads all there is, and says what it found.
func childScan(dir string) error {
	h := alarms{newStderrLog().Handler(), new(atomic.Int64)}
	s, err := open(context.Background(), childConfig(dir), slog.New(h), newMetrics(nil), slow())
	if err != nil {
		fmt.Println("refused")
		return nil
	}
	v, err := s.Verify(context.Background(), nil)
	if err != nil {
		return err
	}
	ids, err := s.allIDs(context.Background())
	if err != nil {
		return err
	}
	for _, id := range ids {
		b, err := childContent(s, id)
		switch {
		case err != nil:
			fmt.Println("E", id)
		case bytes.Equal(b, bytes.Repeat([]byte(id.String()+"\r\n"), len(b)/28)) && len(b) > 0:
			fmt.Println("P", id)
		default:
			fmt.Println("W", id)
		}
	}
	fmt.Println("alarms", h.n.Load()+int64(len(v.Damages)))
	if err := s.Close(); err != nil {
		return err
	}
	fmt.Println("done")
	return nil
}

func childContent(s *Store, id mta.ID) ([]byte, error) {
	r, err := s.Body(context.Background(), id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// patient makes a spool with something in each kind of file: a closed generation, one with a log, a body file.
func patient(t *testing.T, dir string) map[mta.ID]bool {
	all := make(map[mta.ID]bool)
	var reopened mta.ID
	for round := range 3 {
		s := openTest(t, childConfig(dir), slow())
		var last mta.ID
		for i := range 20 {
			last = mustPut(t, s, []int{50, 3000, 60000, 200000}[i%4], "ann@example.org").ID
			all[last] = true
		}
		if round == 2 { // the first generation stays closed, the second one is written to again
			last = reopened
		}
		l := mustClaim(t, s, mta.ClaimRequest{ID: last})
		if err := s.Settle(t.Context(), settlement(l, mta.Deferred, 451))[0]; err != nil {
			t.Fatal(err)
		}
		reopened = last
		if round < 2 {
			closeTest(t, s)
		} else {
			crash(s)
		}
	}
	return all
}

func TestFlippedAndTornFilesAreDetectedAndNeverDelivered(t *testing.T) {
	healthy := filepath.Join(t.TempDir(), "healthy")
	if err := os.Mkdir(healthy, 0o700); err != nil {
		t.Fatal(err)
	}
	all := patient(t, healthy)
	var files []string
	err := filepath.WalkDir(healthy, func(path string, e os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(healthy, path); !e.IsDir() && rel != lockFile {
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]int)
	for _, name := range files {
		kind := filepath.Ext(name)
		switch {
		case strings.HasPrefix(name, bodiesDir):
			kind = bodiesDir
		case kind == "":
			kind = filepath.Base(name)
		}
		if kinds[kind]++; kinds[kind] > 4 {
			continue // many bodies
		}
		for _, harm := range harms {
			t.Run(fmt.Sprintf("%s %s", strings.ReplaceAll(name, "/", " "), harm.name), func(t *testing.T) {
				t.Parallel()
				tryHarm(t, healthy, name, harm.do, all)
			})
		}
	}
	if kinds[".sst"] == 0 || kinds[".mem"] == 0 || kinds[journalFile] < 3 || kinds[bodiesDir] == 0 {
		t.Errorf("kinds of files: %v", kinds)
	}
}

var harms = []struct {
	name string
	do   func(b []byte) []byte
}{
	{"flipped at the head", flip(func(n int) int { return 24 })},
	{"flipped at a third", flip(func(n int) int { return n / 3 })},
	{"flipped at two thirds", flip(func(n int) int { return n * 2 / 3 })},
	{"flipped at the end", flip(func(n int) int { return n - 6 })},
	{"cut to a half", func(b []byte) []byte { return b[:len(b)/2] }},
	{"cut by an octet", func(b []byte) []byte { return b[:len(b)-1] }},
	{"zeroed in the middle", func(b []byte) []byte { clear(b[len(b)/3 : len(b)*2/3]); return b }},
	{"removed", func([]byte) []byte { return nil }},
}

// flip changes one octet of what is not the zeros at the end.
func flip(where func(n int) int) func(b []byte) []byte {
	return func(b []byte) []byte {
		n := len(bytes.TrimRight(b, "\x00"))
		if n == 0 {
			n = len(b)
		}
		b[max(0, min(where(n), n-1))] ^= 0x5a
		return b
	}
}

func tryHarm(t *testing.T, healthy, name string, harm func([]byte) []byte, all map[mta.ID]bool) {
	dir := filepath.Join(t.TempDir(), "spool")
	if err := os.CopyFS(dir, os.DirFS(healthy)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 {
		return
	}
	if b = harm(b); b == nil {
		err = os.Remove(path)
	} else {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	good, bad, alarm, done, refused := 0, 0, "", false, false
	_, wait := startChild(t, "scan", dir, nil, func(line string) {
		what, rest, _ := strings.Cut(line, " ")
		switch what {
		case "P":
			good++
		case "E":
			bad++
		case "W":
			t.Errorf("wrong content would be delivered: %s", rest)
		case "alarms":
			alarm = rest
		case "done":
			done = true
		case "refused":
			refused = true
		}
	})
	if err := wait(); err != nil {
		t.Fatalf("the process ended: %v", err)
	}
	if refused {
		return // loudly: nothing of it was touched
	}
	if !done {
		t.Error("the child did not come to its end")
	}
	if missing := len(all) - good; missing > 0 && alarm == "0" {
		t.Errorf("%d of %d messages missing (%d unreadable) without an alarm", missing, len(all), bad)
	}
}

func TestDamagedContentIsHeldAndNeverDelivered(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	small, large := mustPut(t, s, 1000, "ann@example.org"), mustPut(t, s, 300<<10, "bob@example.net")
	files, err := filepath.Glob(filepath.Join(cfg.Dir, bodiesDir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	l := mustClaim(t, s, mta.ClaimRequest{Dest: "example.net"})
	got, err := readBody(t, s, large.ID)
	if !errors.Is(err, ErrDamaged) || len(got) >= len(b) {
		t.Errorf("read %d of %d octets: %v, want ErrDamaged before the end", len(got), len(b), err)
	}
	if err := s.Settle(t.Context(), settlement(l, mta.Deferred, 451))[0]; err != nil {
		t.Fatal(err)
	}
	for range 2 {
		items, err := s.Get(t.Context(), large.ID)
		if err != nil || !items[0].Held || !strings.Contains(items[0].Reason.Text, "damaged") {
			t.Errorf("%+v %v", items, err)
		}
		if leases, err := s.Claim(t.Context(), mta.ClaimRequest{Dest: "example.net", Max: 1, Lease: 1, IgnoreDue: true}); err != nil || len(leases) > 0 {
			t.Errorf("a damaged message was claimed: %v", err)
		}
		if d := s.Damages(); len(d) != 1 || d[0].ID != large.ID {
			t.Errorf("damages %+v", d)
		}
		wantBody(t, s, small.ID, 1000)
		closeTest(t, s)
		s = openTest(t, cfg, slow())
	}
	defer closeTest(t, s)
	v, err := s.Verify(t.Context(), nil)
	if err != nil || len(v.Damages) != 1 || v.Damages[0].ID != large.ID || v.Messages != 1 {
		t.Errorf("%+v %v", v, err)
	}
}
