package spool

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"understudy/internal/mta"
)

// keptMessage is what a kept spool must hold.
type keptMessage struct {
	ID       mta.ID
	Size     int
	Dest     string
	Attempts int
	Held     bool
}

const (
	keptWant = "want.json"
	keptKey  = "testdata/key"
)

// TestSpoolsOfEarlierReleasesOpen opens what each release kept. UNDERSTUDY_KEEP=v3 makes the next ones; the files of
// earlier releases are never made anew.
func TestSpoolsOfEarlierReleasesOpen(t *testing.T) {
	if name := os.Getenv("UNDERSTUDY_KEEP"); name != "" {
		keepSpool(t, filepath.Join("testdata", "spool-"+name+".tar.gz"), "")
		keepSpool(t, filepath.Join("testdata", "spool-"+name+"-sealed.tar.gz"), keptKey)
	}
	kept, err := filepath.Glob("testdata/spool-*.tar.gz")
	if err != nil || len(kept) < 2 {
		t.Fatalf("%v %v", kept, err)
	}
	for _, path := range kept {
		t.Run(filepath.Base(path), func(t *testing.T) {
			cfg := testConfig(t)
			if matched, _ := filepath.Match("*-sealed.tar.gz", filepath.Base(path)); matched {
				cfg.KeyFile = keptKey
			}
			unpack(t, path, cfg.Dir)
			b, err := os.ReadFile(filepath.Join(cfg.Dir, keptWant))
			if err != nil {
				t.Fatal(err)
			}
			var want []keptMessage
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				s := openTest(t, cfg, slow())
				for _, m := range want {
					wantBody(t, s, m.ID, m.Size)
					items, err := s.Get(t.Context(), m.ID)
					if err != nil || len(items) != 1 || items[0].Dest != m.Dest || items[0].Attempts != m.Attempts || items[0].Held != m.Held {
						t.Errorf("%+v %v, want %+v", items, err, m)
					}
				}
				if v, err := s.Verify(t.Context(), nil); err != nil || len(v.Damages) > 0 || v.Messages != int64(len(want)) {
					t.Errorf("%+v %v", v, err)
				}
				closeTest(t, s)
			}
		})
	}
}

// keepSpool makes a spool with something of everything: generations that were closed, that crashed, and that were made
// anew from their journal, content in the database and in files, progress, an override beside a report.
func keepSpool(t *testing.T, path, key string) {
	cfg := testConfig(t)
	cfg.KeyFile = key
	var want []keptMessage
	for round := range 4 {
		s := openTest(t, cfg, slow())
		for i, n := range []int{0, 500, 20 << 10, inlineMax + 1000} {
			env := mustPut(t, s, n, "ann@example.org")
			m := keptMessage{ID: env.ID, Size: n, Dest: "example.org"}
			l := mustClaim(t, s, mta.ClaimRequest{ID: env.ID})
			st := settlement(l, mta.Deferred, 451)
			switch i {
			case 1:
				st, m.Held = settlement(l, mta.Quarantined, 550), true
			case 2:
				report := testEnvelope("bob@example.net")
				st.Reports = []mta.Report{{Envelope: report, Content: contentOf(report.ID, 100)}}
				want = append(want, keptMessage{ID: report.ID, Size: 100, Dest: "example.net"})
			}
			if err := s.Settle(t.Context(), st)[0]; err != nil {
				t.Fatal(err)
			}
			m.Attempts = 1
			want = append(want, m)
		}
		judged := testEnvelope("ann@example.org")
		judged.Verdict = &mta.Verdict{Action: mta.Quarantine, Findings: []mta.Finding{{Name: "rspamd:reject", Text: "spam", Weight: 15}}}
		if err := s.Put(t.Context(), judged, bytes.NewReader(contentOf(judged.ID, 700))); err != nil {
			t.Fatal(err)
		}
		want = append(want, keptMessage{ID: judged.ID, Size: 700, Dest: "example.org", Held: true})
		gone := mustPut(t, s, 100, "ann@example.org")
		if _, err := s.Apply(t.Context(), Delete, time.Time{}, Key{ID: gone.ID}); err != nil {
			t.Fatal(err)
		}
		if round%2 == 0 {
			closeTest(t, s)
			continue
		}
		for _, g := range s.snapshot() { // as the keeper would, in time
			if !s.isActive(g) {
				s.closeGeneration(g)
			}
		}
		crash(s)
	}
	for _, name := range []string{cleanFile, redoneFile, journalFile, "*.sst", "*.mem"} {
		if len(glob(t, cfg.Dir, "g*/"+name)) == 0 {
			t.Errorf("it has no %s", name)
		}
	}
	b, err := json.MarshalIndent(want, "", "\t")
	if err == nil {
		err = os.WriteFile(filepath.Join(cfg.Dir, keptWant), b, 0o600)
	}
	if err == nil {
		err = os.Remove(filepath.Join(cfg.Dir, lockFile))
	}
	if err != nil {
		t.Fatal(err)
	}
	pack(t, cfg.Dir, path)
}

func pack(t *testing.T, dir, path string) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	out := tar.NewWriter(zip)
	for _, err := range []error{out.AddFS(os.DirFS(dir)), out.Close(), zip.Close(), f.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func unpack(t *testing.T, path, dir string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for in := tar.NewReader(zip); ; {
		head, err := in.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, head.Name)
		if head.Typeflag == tar.TypeDir {
			err = os.MkdirAll(to, 0o700)
		} else {
			var b []byte
			if err = os.MkdirAll(filepath.Dir(to), 0o700); err == nil {
				b, err = io.ReadAll(in)
			}
			if err == nil {
				err = os.WriteFile(to, b, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
