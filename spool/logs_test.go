package spool

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy/internal/mta"
)

// logOf gives the log of a generation of format 1, which has no journal, in which messages were put one after the other.
func logOf(t *testing.T, cfg Config, n int) (path string, ids []mta.ID) {
	t.Helper()
	s := openTest(t, cfg, slow())
	d := s.active.db
	d.fresh = false
	for i := range n {
		env := testEnvelope("ann@example.org")
		content := contentOf(env.ID, 3000)
		m := message{size: int64(len(content)), sum: checksum(content), env: env}
		seq := uint32(i + 1)
		if err := d.write([]entry{{key: messageKey(seq), value: m.encode()}, {key: bodyKey(seq), value: content}}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, env.ID)
	}
	path = d.wal.Name()
	crash(s)
	if err := os.Remove(d.log.f.Name()); err != nil {
		t.Fatal(err)
	}
	return path, ids
}

func TestAReplayThatWouldBeShortIsToldWithWhatIsMissing(t *testing.T) {
	cfg := testConfig(t)
	path, ids := logOf(t, cfg, 6)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if r := (logFile{b: b}).read("x"); r.commits != 7 || r.lost != 0 || len(r.pending) != 0 || r.doubtful || r.size != r.end {
		t.Fatalf("a healthy log: %+v", r) // six messages and the first commit
	}
	at := bytes.Index(b, []byte(ids[2].String()))
	b[at+1000] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r := (logFile{b: b}).read("x")
	for _, id := range ids[3:] {
		if !slices.Contains(r.missing, id) {
			t.Errorf("%s is not named among %v", id, r.missing)
		}
	}
	if r.commits != 3 || r.lost < 3 {
		t.Errorf("%+v", r)
	}

	var said bytes.Buffer
	s, err := open(t.Context(), cfg, slog.New(slog.NewTextHandler(&said, nil)), newMetrics(nil), slow())
	if err != nil {
		t.Fatal(err)
	}
	defer closeTest(t, s)
	for _, id := range ids[3:] {
		if !strings.Contains(said.String(), id.String()) {
			t.Errorf("the alert does not name %s:\n%s", id, said.String())
		}
	}
	for _, id := range ids[:2] {
		wantBody(t, s, id, 3000)
	}
	copies, err := filepath.Glob(filepath.Join(cfg.Dir, asideDir, "*", "*.mem"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("%v %v", copies, err)
	}
	if kept, err := os.ReadFile(copies[0]); err != nil || !bytes.HasPrefix(b, kept) || !bytes.Contains(kept, []byte(ids[5].String())) {
		t.Errorf("the copy of %d octets is not the log: %v", len(kept), err)
	}
}

func TestACommitThatWasCutShortIsNoDamage(t *testing.T) {
	path, ids := logOf(t, testConfig(t), 3)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := (logFile{b: b}).read("x")
	last := bytes.Index(b, []byte(ids[2].String()))
	for _, cut := range []int{last + 10, last + 2000, int(whole.end) - 60} {
		torn := append(bytes.Clone(b[:cut]), make([]byte, len(b)-cut)...)
		if r := (logFile{b: torn}).read("x"); r.lost != 0 || r.commits != 3 || r.doubtful || r.monstrous {
			t.Errorf("cut at %d: %+v", cut, r)
		}
	}
}

func TestAMonstrousHeaderIsSeen(t *testing.T) {
	path, ids := logOf(t, testConfig(t), 3)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := int((logFile{b: b}).read("x").end)
	copy(b[at:], []byte{metaTxn, 0, 13, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 'm'})
	if r := (logFile{b: b}).read("x"); !r.monstrous || r.commits != 4 {
		t.Errorf("%+v after %v", r, ids)
	}
}
