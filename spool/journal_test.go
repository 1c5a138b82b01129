package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
)

// journaled is a spool that crashed, with so many messages in its first generation, of which the first was settled.
// Each was one commit. It gives the paths of the journal and of the database's log.
func journaled(t *testing.T, cfg Config, n int) (journal, log string, ids []mta.ID) {
	t.Helper()
	s := openTest(t, cfg, slow())
	for range n {
		ids = append(ids, mustPut(t, s, 3000, "ann@example.org").ID)
	}
	l := mustClaim(t, s, mta.ClaimRequest{ID: ids[0]})
	if err := s.Settle(t.Context(), settlement(l, mta.Delivered, 250))[0]; err != nil {
		t.Fatal(err)
	}
	journal, log = s.active.db.log.f.Name(), s.active.db.wal.Name()
	crash(s)
	return journal, log, ids
}

// openSaid opens a spool and gives what it said.
func openSaid(t *testing.T, cfg Config) (*Store, string) {
	t.Helper()
	var said bytes.Buffer
	s, err := open(t.Context(), cfg, slog.New(slog.NewTextHandler(&said, nil)), newMetrics(nil), slow())
	if err != nil {
		t.Fatal(err)
	}
	return s, said.String()
}

// harmFile changes a file in place.
func harmFile(t *testing.T, path string, harm func(b []byte)) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	harm(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTheJournalAloneIsEnough(t *testing.T) {
	for name, lose := range map[string]func(b []byte){
		"all of the database's log is lost": func(b []byte) { clear(b[200:]) },
		"half of it":                        func(b []byte) { clear(b[1500:]) },
		"a page in the middle":              func(b []byte) { clear(b[1000:1600]) },
		"nothing":                           func([]byte) {},
	} {
		for _, key := range []string{"", writeKey(t)} {
			t.Run(name+map[bool]string{true: ", encrypted"}[key != ""], func(t *testing.T) {
				cfg := testConfig(t)
				cfg.KeyFile = key
				_, log, ids := journaled(t, cfg, 6)
				harmFile(t, log, lose)
				for range 2 {
					s, said := openSaid(t, cfg)
					if strings.Contains(said, "level=ERROR") || strings.Contains(said, "level=WARN") {
						t.Errorf("said\n%s", said)
					}
					if _, err := s.Get(t.Context(), ids[0]); !errors.Is(err, ErrNotFound) {
						t.Errorf("what was delivered is back: %v", err)
					}
					for _, id := range ids[1:] {
						wantBody(t, s, id, 3000)
					}
					if v, err := s.Verify(t.Context(), nil); err != nil || len(v.Damages) > 0 || v.Messages != 5 {
						t.Errorf("%+v %v", v, err)
					}
					crash(s)
				}
			})
		}
	}
}

func TestWhatHappensAfterTheJournalWasReadIsKept(t *testing.T) {
	cfg := testConfig(t)
	journal, _, ids := journaled(t, cfg, 4)
	dir, away := filepath.Dir(journal), filepath.Join(t.TempDir(), "away")
	if err := errors.Join(os.Rename(dir, away), os.Mkdir(filepath.Join(cfg.Dir, generationName(9)+goneSuffix), 0o700)); err != nil {
		t.Fatal(err)
	}
	s := openTest(t, cfg, slow())
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	g, err := s.identify(dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	g.live.Add(1) // the keeper, which runs already, is not to take it for drained
	s.mu.Lock()
	s.gens[1] = g
	s.mu.Unlock()
	s.found = &findings{files: make(map[string]struct{})}
	left, err := examine(g)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.replay(g, left); err != nil {
		t.Fatal(err)
	}
	// It was not closed, and a settlement follows.
	if err := s.writeTo(g, []entry{{key: messageKey(3)}}, 1); err != nil {
		t.Fatal(err)
	}
	crash(s)
	s = openTest(t, cfg, slow())
	defer closeTest(t, s)
	wantBody(t, s, ids[1], 3000)
	wantBody(t, s, ids[3], 3000)
	for _, id := range []mta.ID{ids[0], ids[2]} {
		if _, err := s.Get(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("what was settled is back: %v", err)
		}
	}
}

func TestADamagedCommitOfTheJournalIsToldAndTheOthersAreThere(t *testing.T) {
	for _, what := range []string{"content", "sealed content", "record", "sealed record"} {
		t.Run(what, func(t *testing.T) {
			cfg := testConfig(t)
			sealed, record := strings.HasPrefix(what, "sealed"), strings.HasSuffix(what, "record")
			if sealed {
				cfg.KeyFile = writeKey(t)
			}
			journal, log, ids := journaled(t, cfg, 6)
			harmFile(t, log, func(b []byte) { clear(b[200:]) })
			harmFile(t, journal, func(b []byte) {
				at := int(journalHead)
				for range 3 {
					at += frameHead + int(binary.BigEndian.Uint32(b[at+8:])+binary.BigEndian.Uint32(b[at+12:]))
				}
				if at += frameHead; !record {
					at += int(binary.BigEndian.Uint32(b[at-12:])) // the length of the entries
				}
				b[at+100] ^= 1
			})
			s, said := openSaid(t, cfg)
			if kept, err := filepath.Glob(filepath.Join(cfg.Dir, asideDir, "*", "*.mem")); err != nil || len(kept) != 1 {
				t.Errorf("copies %v %v", kept, err)
			}
			want := "held=" + ids[3].String()
			switch {
			case record && sealed:
				want = "lost=1" // nobody can say what it was
			case record:
				want = "missing=" + ids[3].String()
			}
			if !strings.Contains(said, "journal is damaged") || !strings.Contains(said, want) {
				t.Errorf("said\n%s", said)
			}
			for range 2 { // what is found once is there after a restart, too
				if d := s.Damages(); len(d) == 0 || d[0].Dir == "" {
					t.Errorf("damages %+v", d)
				}
				for i, id := range ids[1:] {
					if i != 2 {
						wantBody(t, s, id, 3000)
					}
				}
				items, err := s.Get(t.Context(), ids[3])
				if record && !errors.Is(err, ErrNotFound) || !record && (err != nil || !items[0].Held) {
					t.Errorf("%+v %v", items, err)
				}
				if _, err := readBody(t, s, ids[3]); !record && !errors.Is(err, ErrDamaged) {
					t.Errorf("body: %v", err)
				}
				closeTest(t, s)
				s = openTest(t, cfg, slow())
			}
			closeTest(t, s)
		})
	}
}

func TestAJournalThatEndsInTheMiddleOfACommitIsNoDamage(t *testing.T) {
	for _, n := range []int{10, 100, 2500} {
		cfg := testConfig(t)
		journal, log, ids := journaled(t, cfg, 3)
		harmFile(t, log, func(b []byte) { clear(b[200:]) })
		harmFile(t, journal, func(b []byte) { clear(b[bytes.Index(b, contentOf(ids[2], 3000))+n:]) })
		s, said := openSaid(t, cfg)
		if strings.Contains(said, "level=ERROR") || !strings.Contains(said, "was not finished") {
			t.Errorf("said\n%s", said)
		}
		wantBody(t, s, ids[1], 3000)
		if _, err := s.Get(t.Context(), ids[2]); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
		closeTest(t, s)
	}
}

func TestTheLogBearsWitnessAgainstADamagedJournal(t *testing.T) {
	for _, key := range []string{"", writeKey(t)} {
		cfg := testConfig(t)
		cfg.KeyFile = key
		journal, _, ids := journaled(t, cfg, 4)
		harmFile(t, journal, func(b []byte) { clear(b[len(bytes.TrimRight(b, "\x00"))-60:]) }) // the last commits: a message's end, and its content
		s, said := openSaid(t, cfg)
		if !strings.Contains(said, "if it was promised, it is lost") {
			t.Errorf("said\n%s", said)
		}
		wantBody(t, s, ids[2], 3000)
		closeTest(t, s)
	}
}

// frames gives the frames of groups, as they lie from the head on.
func frames(j *journal, groups ...[][]entry) []byte {
	var out []byte
	at := journalHead
	for _, g := range groups {
		j.start, j.pieces, j.scratch = at, nil, nil
		for _, entries := range g {
			at = j.frame(entries, at)
		}
		out = append(out, bytes.Join(j.pieces, nil)...)
	}
	return out
}

func testJournal(t testing.TB) *journal {
	f, err := os.Create(filepath.Join(t.TempDir(), journalFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &journal{f: f, seed: 1234}
}

func testWrite(seq uint32, content []byte) []entry {
	env := testEnvelope("ann@example.org")
	m := message{size: int64(len(content)), sum: checksum(content), env: env}
	return []entry{{messageKey(seq), m.encode(), content}, {key: progressKey(seq), value: []byte("p")}, {key: messageKey(seq + 1000)}}
}

func TestAFrameComesBackAsItWasWritten(t *testing.T) {
	for _, key := range [][]byte{nil, bytes.Repeat([]byte("k"), keySize)} {
		j := testJournal(t)
		head := make([]byte, journalHead)
		if err := j.unlock(head, key); err != nil {
			t.Fatal(err)
		}
		var groups [][][]entry
		for i := range uint32(4) {
			groups = append(groups, [][]entry{testWrite(2*i, contentOf(mta.NewID(time.Now()), int(i)*3000)), testWrite(2*i+1, []byte{})})
		}
		b := frames(j, groups...)
		if err := writePieces(j.f, [][]byte{head, b}, 0); err != nil {
			t.Fatal(err)
		}
		n := 0
		r, err := j.read(journalHead, func(entries []entry) error {
			want := groups[n/2][n%2]
			if len(entries) != len(want) {
				t.Fatalf("frame %d: %d entries", n, len(entries))
			}
			for i, e := range entries {
				if !bytes.Equal(e.key, want[i].key) || !bytes.Equal(e.value, want[i].value) || (e.value == nil) != (want[i].value == nil) {
					t.Errorf("frame %d: %q %q, want %q %q", n, e.key, e.value, want[i].key, want[i].value)
				}
			}
			m, err := decodeMessage(entries[0].value)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := j.content(m); err != nil || !bytes.Equal(got, want[0].content) {
				t.Errorf("frame %d: %d octets %v", n, len(got), err)
			}
			n++
			return nil
		})
		if err != nil || n != 8 || r.torn || r.lost > 0 || r.end != journalHead+int64(len(b)) {
			t.Errorf("%d frames, %+v %v", n, r, err)
		}
	}
}

func TestOneCommitIsDamagedOrTornByWhatLiesBehindIt(t *testing.T) {
	j := testJournal(t)
	write := func(seq uint32) []entry { return testWrite(seq, contentOf(mta.NewID(time.Now()), 100)) }
	b := frames(j, [][]entry{write(1)}, [][]entry{write(2), write(3)}, [][]entry{write(4), write(5)})
	_, _, ok := j.readFrame(b, journalHead, nil)
	if !ok {
		t.Fatal("the first frame can't be read")
	}
	each := len(b) / 5 // all are of one size
	for name, c := range map[string]struct {
		flip         int // frame
		frames, lost int
		torn         bool
	}{
		"the first":                   {0, 4, 1, false},
		"the first of a group":        {1, 4, 1, false},
		"the last of a group":         {2, 4, 1, false},
		"the first of the last group": {3, 4, 0, true},
		"the last":                    {4, 4, 0, true},
	} {
		harmed := bytes.Clone(b)
		harmed[c.flip*each+each/2] ^= 1
		n := 0
		r, err := j.scan(harmed, journalHead, func([]entry) error { n++; return nil })
		if err != nil || n != c.frames || r.lost != c.lost || r.torn != c.torn {
			t.Errorf("%s: %d frames, %+v %v", name, n, r, err)
		}
	}
}

func TestContentIsNeverTakenForAFrame(t *testing.T) {
	j := testJournal(t)
	forged := frames(&journal{f: j.f, seed: 4321}, [][]entry{{{key: messageKey(1)}}})
	elsewhere := frames(j, [][]entry{{{key: messageKey(1)}}})
	b := frames(j, [][]entry{testWrite(1, []byte("x"))}, [][]entry{testWrite(2, slicesOf(forged, elsewhere, forged))}, [][]entry{testWrite(3, []byte("y"))})
	b[bytes.Index(b, forged)-40] ^= 1 // so that it is searched for frames
	var got []string
	r, err := j.scan(b, journalHead, func(entries []entry) error { got = append(got, string(entries[0].key)); return nil })
	if err != nil || r.lost != 1 || len(got) != 2 || got[0] != string(messageKey(1)) || got[1] != string(messageKey(3)) {
		t.Errorf("%q %+v %v", got, r, err)
	}
}

// fakeHeads fills b with heads of frames that claim all of b and what lies behind it.
func fakeHeads(b []byte, behind int) {
	for i := 0; i+frameHead <= len(b); i += frameHead {
		binary.BigEndian.PutUint32(b[i:], frameMagic)
		binary.BigEndian.PutUint32(b[i+8:], 40)
		binary.BigEndian.PutUint32(b[i+12:], uint32(len(b)+behind-i-frameHead-40))
	}
}

func TestAMebibyteOfFakeHeadsCostsLittleForEach(t *testing.T) {
	const size = 1 << 20
	j := testJournal(t)
	content := make([]byte, size)
	fakeHeads(content, 100) // which ends within the last frame
	b := frames(j, [][]entry{testWrite(1, []byte("x"))}, [][]entry{testWrite(2, content)}, [][]entry{testWrite(3, []byte("y"))})
	b[bytes.Index(b, content)-10] ^= 1
	r, err := j.scan(b, journalHead, func([]entry) error { return nil })
	if err != nil || r.frames != 2 || r.lost != 1 || r.torn {
		t.Errorf("%+v %v", r, err)
	}
	const heads = size / frameHead
	if most := int64(len(b) + heads*2*sumStep); r.searched < size || r.searched > most {
		t.Errorf("%d octets were summed, which is not between %d and %d; each head to its end would be %d", r.searched, size, most, int64(heads)*size/2)
	}
}

// framesByTrying is scan without a thought for what it costs: every place is tried, to the end that it claims.
func framesByTrying(j *journal, b []byte) (places []int) {
	for at := 0; at < len(b); {
		f, _, ok := j.readFrame(b[at:], journalHead+int64(at), nil)
		if !ok {
			at++
			continue
		}
		places = append(places, at)
		at += int(f.length)
	}
	return places
}

// wantAllFrames holds a scan against trying every place.
func wantAllFrames(t *testing.T, j *journal, b []byte) {
	t.Helper()
	var got, want [][]entry
	for _, at := range framesByTrying(j, b) {
		_, entries, _ := j.readFrame(b[at:], journalHead+int64(at), nil)
		want = append(want, entries)
	}
	r, err := j.scan(b, journalHead, func(entries []entry) error {
		if len(entries) < 2 || string(entries[1].value) == "p" { // what is to be held has a state of its own
			got = append(got, entries)
		}
		return nil
	})
	if err != nil || r.end > journalHead+int64(len(b)) {
		t.Errorf("%+v %v", r, err)
	}
	if r.frames != len(want) || !reflect.DeepEqual(got, want) {
		t.Errorf("%d frames, want %d", r.frames, len(want))
	}
}

func TestASearchMissesNoFrame(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 3))
		j := testJournal(t)
		var groups [][][]entry
		for i := range uint32(30) {
			content := octets(r, r.IntN(5000))
			if r.IntN(3) == 0 {
				fakeHeads(content, r.IntN(20000))
			}
			w := testWrite(i, content)
			if len(groups) > 0 && r.IntN(2) == 0 {
				groups[len(groups)-1] = append(groups[len(groups)-1], w)
			} else {
				groups = append(groups, [][]entry{w})
			}
		}
		b := frames(j, groups...)
		for range r.IntN(6) {
			b[r.IntN(len(b))] ^= byte(1 << r.IntN(8))
		}
		if r.IntN(2) == 0 {
			b = append(b[:r.IntN(len(b))], make([]byte, 3000)...)
		}
		wantAllFrames(t, j, b)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func BenchmarkScanOfFakeHeads(b *testing.B) {
	j := testJournal(b)
	journal := make([]byte, 32<<20)
	for _, size := range []int{16 << 10, 1 << 20, 32 << 20} {
		b.Run(mta.Size(size).String(), func(b *testing.B) {
			clear(journal)
			fakeHeads(journal[:size], len(journal)-size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if r, err := j.scan(journal, journalHead, func([]entry) error { return nil }); err != nil || !r.torn {
					b.Fatal(r, err)
				}
			}
		})
	}
}

func slicesOf(list ...[]byte) []byte { return bytes.Join(list, nil) }

func TestAJournalThatCantBeWrittenToEndsItsGeneration(t *testing.T) {
	cfg := testConfig(t)
	s := openTest(t, cfg, slow())
	first := mustPut(t, s, 100, "ann@example.org")
	if err := s.active.db.log.f.Close(); err != nil {
		t.Fatal(err)
	}
	env := testEnvelope("ann@example.org")
	if err := s.Put(t.Context(), env, bytes.NewReader(contentOf(env.ID, 100))); !errors.Is(err, ErrUnknown) {
		t.Errorf("put: %v, want ErrUnknown", err)
	}
	second := mustPut(t, s, 100, "ann@example.org") // a new generation stands
	crash(s)
	s = openTest(t, cfg, slow())
	defer closeTest(t, s)
	wantBody(t, s, first.ID, 100)
	wantBody(t, s, second.ID, 100)
}

func FuzzReadJournal(f *testing.F) {
	j := &journal{seed: 1234}
	f.Add(frames(j, [][]entry{testWrite(1, []byte("x"))}, [][]entry{testWrite(2, []byte("y")), testWrite(3, nil)}))
	f.Fuzz(func(t *testing.T, b []byte) { wantAllFrames(t, j, b) })
}

func TestARecordWithAnImpossiblePlaceHoldsNothing(t *testing.T) {
	j := testJournal(t)
	for _, at := range []int64{-1, 0, journalHead, math.MaxInt64, math.MaxInt64 - 50} {
		m := &message{at: at, size: 100}
		if j.contentAlone(m, piece{make([]byte, 400), journalHead}, 50) {
			t.Errorf("at %d", at)
		}
	}
}
