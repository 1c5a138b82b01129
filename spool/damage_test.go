package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// scanConfig is what a folder that may be damaged is opened with: its key lies beside it.
func scanConfig(dir string) Config {
	cfg := childConfig(dir)
	if key := dir + ".key"; isThere(key) {
		cfg.KeyFile = key
	}
	return cfg
}

// childScan opens a folder that may be damaged, reads all there is, and says what it found: a line for each message.
func childScan(dir string) error {
	h := alarms{newStderrLog().Handler(), new(atomic.Int64)}
	s, err := open(context.Background(), scanConfig(dir), slog.New(h), newMetrics(nil), slow())
	if err != nil {
		fmt.Println("refused", err)
		return nil
	}
	fmt.Println("opened", h.n.Load())
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
		items, getErr := s.Get(context.Background(), id)
		switch {
		case getErr != nil:
			return getErr
		case err != nil && items[0].Held:
			fmt.Println("E", id)
		case err != nil:
			fmt.Println("L", id, err)
		case bytes.Equal(b, bytes.Repeat([]byte(id.String()+"\r\n"), len(b)/28)) && len(b) > 0:
			fmt.Println("P", id, len(b), addresses(items[0].Rcpts), items[0].Attempts)
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

// patient is a spool with something in each kind of file: a closed generation, one with a log, one that was not closed,
// files of content.
type patient struct {
	dir   string
	files map[string][]byte // what is in it, without the zeros at the end
	sizes map[string]int64
	where map[mta.ID]string // the folder of its generation
	file  map[mta.ID]string // its content, if it has a file
	said  map[mta.ID]string // what a scan says of it
}

func newPatient(t *testing.T, key string) *patient {
	p := &patient{
		dir: filepath.Join(t.TempDir(), "healthy"), files: make(map[string][]byte), sizes: make(map[string]int64),
		where: make(map[mta.ID]string), file: make(map[mta.ID]string), said: make(map[mta.ID]string),
	}
	if key != "" {
		copyFile(t, key, p.dir+".key")
	}
	cfg := scanConfig(p.dir)
	var reopened mta.ID
	for round := range 3 {
		s := openTest(t, cfg, slow())
		var last mta.ID
		for i := range 20 {
			last = mustPut(t, s, []int{50, 3000, 60000, 200000}[i%4], "ann@example.org", "bob@example.org").ID
			at, _ := s.where(last)
			p.where[last] = generationName(at.gen)
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
	for _, path := range glob(t, p.dir, bodiesDir+"/*") {
		id, err := mta.ParseID(strings.SplitN(filepath.Base(path), "-", 2)[0])
		if err != nil {
			t.Fatal(err)
		}
		p.file[id] = filepath.Join(bodiesDir, filepath.Base(path))
	}
	p.read(t)
	r := scan(t, p, "", nil)
	for id, line := range r.said {
		p.said[id] = line
	}
	if len(p.said) != 60 || len(p.where) != 60 || len(p.file) != 15 || r.alarms != "0" || !r.done {
		t.Fatalf("a healthy spool: %d of %d read, %d files, %+v", len(p.said), len(p.where), len(p.file), r)
	}
	return p
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// scanned is what a child said of a folder.
type scanned struct {
	said    map[mta.ID]string
	held    int
	opened  string // alarms of Open
	alarms  string // and of all that was read then
	refused string
	done    bool
}

// scan has a child read a copy of the patient in which one file was harmed.
func scan(t *testing.T, p *patient, name string, harm func([]byte) []byte) scanned {
	t.Helper()
	dir := filepath.Join(swiftDir(t), "spool")
	p.copyTo(t, dir)
	if isThere(p.dir + ".key") {
		copyFile(t, p.dir+".key", dir+".key")
	}
	if harm != nil {
		path := filepath.Join(dir, name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if b = harm(b); b == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r := scanned{said: make(map[mta.ID]string)}
	_, wait := startChild(t, "scan", dir, nil, func(line string) {
		what, rest, _ := strings.Cut(line, " ")
		switch what {
		case "P":
			text, _, _ := strings.Cut(rest, " ")
			id, err := mta.ParseID(text)
			if err != nil {
				t.Error(err)
			}
			r.said[id] = line
		case "E":
			r.held++
		case "L":
			r.held++
			t.Errorf("can't be read and is not held: %s", rest)
		case "W":
			t.Errorf("wrong content would be delivered: %s", rest)
		case "opened":
			r.opened = rest
		case "alarms":
			r.alarms = rest
		case "done":
			r.done = true
		case "refused":
			r.refused = rest
		}
	})
	if err := wait(); err != nil {
		t.Fatalf("the process ended: %v", err)
	}
	return r
}

func TestFlippedAndTornFilesAreDetectedAndNeverDelivered(t *testing.T) {
	for sealing, key := range map[string]string{"clear": "", "sealed": writeKey(t)} {
		t.Run(sealing, func(t *testing.T) {
			tried := 0
			t.Parallel()
			p := newPatient(t, key)
			kinds := make(map[string]int)
			for _, name := range slices.Sorted(maps.Keys(p.files)) {
				kind := filepath.Ext(name)
				switch {
				case name == lockFile || p.sizes[name] == 0:
					continue
				case strings.HasPrefix(name, bodiesDir):
					kind = bodiesDir
				case kind == "":
					kind = filepath.Base(name)
				}
				if kinds[kind]++; kinds[kind] > 1 && (kind == bodiesDir || kind == ".vlog" || kind == "DISCARD") {
					continue // they are all alike
				}
				for _, harm := range harms {
					if tried++; testing.Short() && tried%4 != 0 { // each is a process of its own
						continue
					}
					t.Run(fmt.Sprintf("%s %s", strings.ReplaceAll(name, "/", " "), harm.name), func(t *testing.T) {
						t.Parallel()
						tryHarm(t, p, name, harm.do)
					})
				}
			}
			if kinds[".sst"] == 0 || kinds[".mem"] == 0 || kinds[journalFile] < 3 || kinds[bodiesDir] == 0 || kinds["KEYREGISTRY"] < 3 {
				t.Errorf("kinds of files: %v", kinds)
			}
		})
	}
}

// read takes all files into memory.
func (p *patient) read(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(p.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(p.dir, path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		p.files[rel], p.sizes[rel] = bytes.Clone(bytes.TrimRight(b, "\x00")), int64(len(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// copyTo makes a copy whose files end in holes: most of them is room that was taken in advance.
func (p *patient) copyTo(t *testing.T, dir string) {
	t.Helper()
	for name, b := range p.files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err == nil {
			err = os.WriteFile(path, b, 0o600)
		}
		if err == nil {
			err = os.Truncate(path, p.sizes[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

var harms = []struct {
	name string
	do   func(b []byte) []byte
}{
	{"flipped behind the head", flip(func(n int) int { return 24 })},
	{"flipped in the head", flip(func(n int) int { return 12 })},
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

// harmless reports whether a message has nothing in a file: it lies in another generation, and its content elsewhere.
func (p *patient) harmless(id mta.ID, name string) bool {
	return !strings.HasPrefix(name, p.where[id]+"/") && p.file[id] != name
}

func tryHarm(t *testing.T, p *patient, name string, harm func([]byte) []byte) {
	r := scan(t, p, name, harm)
	if r.refused != "" {
		// The key or the format that a generation names may be none of ours: an operator's mistake looks the same.
		if filepath.Base(name) != generationFile || !strings.Contains(r.refused, "old_key_files") && !strings.Contains(r.refused, "format version") {
			t.Errorf("refused as a whole: %s", r.refused)
		}
		return
	}
	if !r.done {
		t.Error("the child did not come to its end")
	}
	worse := 0
	for id, line := range p.said {
		got, ok := r.said[id]
		if got != line {
			worse++
		}
		if got != line && p.harmless(id, name) {
			t.Errorf("of %s there is %q, was %q", p.where[id], got, line)
		}
		if ok && withoutAttempts(got) != withoutAttempts(line) {
			t.Errorf("%q, was %q", got, line)
		}
	}
	if missing := len(p.said) - len(r.said) - r.held; missing > 0 && r.opened == "0" {
		t.Errorf("Open says nothing of %d messages that are missing", missing)
	}
	if worse > 0 && r.alarms == "0" {
		t.Errorf("%d of %d messages are worse (%d held) without an alarm", worse, len(p.said), r.held)
	}
}

// withoutAttempts is what a scan says of a message but for its progress, which can be lost for itself.
func withoutAttempts(line string) string { return line[:strings.LastIndexByte(line, ' ')] }

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
