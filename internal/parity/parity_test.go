package parity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"understudy/internal/mta"
)

// table is a State in memory.
type table struct {
	mu   sync.Mutex // guards what follows
	m    map[string][]byte
	ttl  time.Duration
	fail bool
}

func (s *table) Put(_ context.Context, ns, key string, val []byte, ttl time.Duration, _ *uint64) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail {
		return 0, errors.New("full")
	}
	if s.m == nil {
		s.m = map[string][]byte{}
	}
	s.m[ns+"\x00"+key], s.ttl = val, ttl
	return 1, nil
}

func (s *table) Scan(_ context.Context, ns, prefix, after string, _ int, f func(string, []byte, uint64) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for k := range s.m {
		if of, key, _ := strings.Cut(k, "\x00"); of == ns && strings.HasPrefix(key, prefix) && key > after {
			keys = append(keys, key)
		}
	}
	sort.Strings(keys)
	for _, k := range keys {
		if err := f(k, s.m[ns+"\x00"+k], 1); err != nil {
			return err
		}
	}
	return nil
}

func (s *table) setFail(fail bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

var config = Config{AlarmBypass: 0.01, AlarmMessages: 50, Keep: 90 * 24 * time.Hour}

// running is a Tally that runs until stop.
func running(t *testing.T, state State, events func(mta.Event), reg prometheus.Registerer) (*Tally, func()) {
	t.Helper()
	tally, err := New(config, Deps{State: state, Events: events, Log: slog.New(slog.DiscardHandler), Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	tally.Load(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tally.Run(ctx) }()
	return tally, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func report(t *testing.T, tally *Tally, q Query) Report {
	t.Helper()
	r, err := tally.Report(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var serial int

func newID() mta.ID {
	serial++
	return mta.NewID(time.UnixMilli(1_700_000_000_000 + int64(serial)))
}

func pair(kind mta.PairKind, ours mta.Action, theirs mta.Fate) mta.Pair {
	return mta.Pair{Kind: kind, Domain: "example.org", ID: newID(), At: time.Now(), Ours: ours, Theirs: theirs, Reply: mta.Reply{Code: 554, Enhanced: "5.7.1", Text: "spam"}}
}

func TestWilsonsIntervals(t *testing.T) {
	tests := []struct {
		n, of     int64
		low, high float64
	}{
		{0, 0, 0, 1},
		{0, 10, 0, 0.2775}, // Wilson 1927; Newcombe 1998, method 3
		{1, 10, 0.0179, 0.4042},
		{81, 263, 0.2553, 0.3662},
		{15, 148, 0.0624, 0.1605},
		{10, 10, 0.7225, 1},
		{1, 1_000_000, 0.00000018, 0.0000057},
	}
	for _, tt := range tests {
		low, high := wilson(tt.n, tt.of)
		if math.Abs(low-tt.low) > 0.00005 || math.Abs(high-tt.high) > 0.00005 || low < 0 || high > 1 {
			t.Errorf("%d of %d: got %.6f to %.6f, want %.6f to %.6f", tt.n, tt.of, low, high, tt.low, tt.high)
		}
	}
}

func TestTheRatesCountMessagesThatBothDecidedAbout(t *testing.T) {
	var m Matrix
	m[mta.Accept] = [fates]int64{mta.Taken: 900, mta.RefusedContent: 6, mta.RefusedRcpt: 50, mta.PutOff: 40}
	m[mta.Mark] = [fates]int64{mta.Taken: 90, mta.RefusedContent: 4}
	m[mta.Quarantine] = [fates]int64{mta.Taken: 3, mta.RefusedContent: 7}
	m[mta.Reject] = [fates]int64{mta.Taken: 2, mta.RefusedContent: 88, mta.RefusedRcpt: 5}
	m[mta.Defer] = [fates]int64{mta.Taken: 11, mta.RefusedContent: 13}
	if r := m.Bypass(); r.N != 10 || r.Of != 1000 || r.Rate != 0.01 {
		t.Errorf("bypass: %+v", r)
	}
	if r := m.OverBlock(); r.N != 5 || r.Of != 100 || r.Rate != 0.05 {
		t.Errorf("over-block: %+v", r)
	}
	if n := m.Messages(); n != 900+6+40+94+10+90+24 {
		t.Errorf("%d messages", n)
	}
	b, err := json.Marshal(m)
	var back Matrix
	if err != nil || json.Unmarshal(b, &back) != nil || back != m {
		t.Errorf("%s is read back as %v (%v)", b, back, err)
	}
	for _, bad := range []string{`{"drop": {"accepted": 1}}`, `{"accept": {"lost": 1}}`, `{"accept": {"accepted": -1}}`, `[]`} {
		if json.Unmarshal([]byte(bad), &back) == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

func TestAReasonIsWhatStaysTheSame(t *testing.T) {
	tests := []struct{ code, enhanced, text, want string }{
		{"554", "5.7.1", "Spam message rejected", "5.7.1 spam message rejected"},
		{"550", "5.1.1", "<bob@example.org>: Recipient address rejected: User unknown in relay recipient table", "5.1.1 recipient address rejected: user unknown in relay recipient"},
		{"554", "5.7.1", "Service unavailable; Client host [192.0.2.1] blocked using zen.example; see https://x/192.0.2.1", "5.7.1 service unavailable; client host blocked using zen.example; see"},
		{"550", "", "no\nand why", "550 no"},
		{"550", "", "", "550"},
		{"550", "5.7.1", "a\x00\x1b[31m\u202e b\xff", "5.7.1 b?"},
		{"550", "5.7.1", strings.Repeat("ä", 100), "5.7.1 " + strings.Repeat("ä", 38)},
	}
	for _, tt := range tests {
		r := mta.Reply{Code: 554, Enhanced: tt.enhanced, Text: tt.text}
		if tt.code == "550" {
			r.Code = 550
		}
		if got := reasonOf(r); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestFrequentReasonsStayWhateverIsSaidInBetween(t *testing.T) {
	var list []Reason
	for i := range 10_000 {
		list = note(list, fmt.Sprintf("invented %d", i), newID())
		if i%10 == 0 {
			list = note(list, "spam", newID())
		}
	}
	list = top(list)
	i := slices.IndexFunc(list, func(r Reason) bool { return r.Text == "spam" })
	if len(list) != maxReasons || i < 0 || list[i].Count < 1000 || len(list[i].IDs) != maxIDs {
		t.Errorf("%d reasons, spam is %d: %+v", len(list), i, list[max(i, 0)])
	}
}

func TestAMessageCountsOnceForEachWordOfThePrimary(t *testing.T) {
	tally, err := New(config, Deps{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	p := pair(mta.PairReceipt, mta.Accept, mta.Taken)
	for range 5 { // recipients
		tally.Add(p)
	}
	p.Theirs = mta.RefusedContent // for one more, whose owner is stricter
	tally.Add(p)
	p.Theirs = mta.RefusedRcpt
	tally.Add(p)
	tally.Add(p)
	p.Kind = mta.PairHindsight
	p.Theirs = mta.Taken
	tally.Add(p)
	p.Ours = 99
	tally.Add(p)
	p.Ours, p.Kind = 0, 99
	tally.Add(p)
	r := report(t, tally, Query{})
	if len(r.Domains) != 1 || len(r.Domains[0].Kinds) != 2 {
		t.Fatalf("got %+v", r)
	}
	want := [fates]int64{mta.Taken: 1, mta.RefusedContent: 1, mta.RefusedRcpt: 2}
	if got := r.Domains[0].Kinds[0]; got.Kind != mta.PairReceipt || got.Matrix[mta.Accept] != want || got.Messages != 2 {
		t.Errorf("got %+v", got)
	}
	for range 3 * maxSeen {
		tally.Add(pair(mta.PairShadow, mta.Accept, mta.Taken))
	}
	if len(tally.seen.m) != maxSeen || len(tally.seen.ring) != maxSeen {
		t.Errorf("%d messages are remembered", len(tally.seen.m))
	}
}

func TestCountsOutliveTheProcessAndReachOverDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := &table{}
		tally, stop := running(t, state, nil, nil)
		refused := pair(mta.PairShadow, mta.Accept, mta.RefusedContent)
		tally.Add(refused)
		tally.Add(pair(mta.PairShadow, mta.Accept, mta.Taken))
		held := pair(mta.PairReceipt, mta.Quarantine, mta.Taken)
		held.Reasons = []string{"dnsbl:x", "spf:fail"}
		tally.Add(held)
		stop()
		tally, stop = running(t, state, nil, nil)
		tally.Add(pair(mta.PairShadow, mta.Accept, mta.Taken))
		time.Sleep(25 * time.Hour)
		tally.Add(pair(mta.PairShadow, mta.Accept, mta.RefusedContent))
		other := pair(mta.PairShadow, mta.Reject, mta.RefusedContent)
		other.Domain = "example.net"
		tally.Add(other)

		r := report(t, tally, Query{Domain: "example.org", Days: 2})
		if len(r.Domains) != 1 || len(r.Domains[0].Kinds) != 2 {
			t.Fatalf("got %+v", r)
		}
		shadow, receipt := r.Domains[0].Kinds[0], r.Domains[0].Kinds[1]
		if shadow.Matrix[mta.Accept] != [fates]int64{mta.Taken: 2, mta.RefusedContent: 2} || len(shadow.Days) != 2 || shadow.Days[0].Day != r.From {
			t.Errorf("got %+v", shadow)
		}
		if len(shadow.TheyRefuse) != 1 || shadow.TheyRefuse[0].Count != 2 || shadow.TheyRefuse[0].IDs[0] != refused.ID.String() {
			t.Errorf("they refuse for %+v", shadow.TheyRefuse)
		}
		if len(receipt.WeRefuse) != 2 || receipt.WeRefuse[0].Text != "dnsbl:x" || !slices.Equal(receipt.WeRefuse[1].IDs, []string{held.ID.String()}) {
			t.Errorf("we refuse for %+v", receipt.WeRefuse)
		}
		if r := report(t, tally, Query{Days: 1}); len(r.Domains) != 2 || r.Domains[1].Kinds[0].Matrix.Messages() != 1 || r.From != r.To {
			t.Errorf("today: %+v", r)
		}
		time.Sleep(8 * 24 * time.Hour)
		if len(tally.records) != 0 {
			t.Errorf("%d records are in memory", len(tally.records))
		}
		stop()
		tally, stop = running(t, state, nil, nil)
		defer stop()
		if r := report(t, tally, Query{}); len(r.Domains) != 0 {
			t.Errorf("this week: %+v", r)
		}
		if r := report(t, tally, Query{Days: 90}); len(r.Domains) != 2 || r.Domains[1].Kinds[0].Messages != 4 {
			t.Errorf("all: %+v", r)
		}
		if state.ttl != config.Keep {
			t.Errorf("kept for %v", state.ttl)
		}
		if _, err := tally.Report(t.Context(), Query{Days: -1}); err == nil {
			t.Error("a negative number of days was taken")
		}
	})
}

func TestWhatCanNotBeWrittenIsWrittenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := &table{}
		state.setFail(true)
		tally, stop := running(t, state, nil, nil)
		tally.Add(pair(mta.PairShadow, mta.Accept, mta.RefusedContent))
		time.Sleep(30 * time.Hour) // over midnight
		state.setFail(false)
		time.Sleep(time.Minute)
		stop()
		tally, stop = running(t, state, nil, nil)
		defer stop()
		if r := report(t, tally, Query{}); len(r.Domains) != 1 || len(r.Domains[0].Kinds[0].TheyRefuse) != 1 {
			t.Errorf("got %+v", r)
		}
	})
}

func TestManyCountAtOnceWhileItIsReadAndWritten(t *testing.T) {
	tally, err := New(config, Deps{State: &table{}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]mta.ID, 400)
	for i := range ids {
		ids[i] = newID()
	}
	var g sync.WaitGroup
	for i := range 4 {
		g.Go(func() {
			for j := range 100 {
				tally.Add(mta.Pair{Domain: "example.org", ID: ids[i*100+j], At: time.Now(), Theirs: mta.RefusedContent, Reply: mta.Reply{Code: 554}})
			}
		})
	}
	g.Go(func() {
		for range 20 {
			tally.flush(t.Context())
			tally.look(time.Now())
			if _, err := tally.Report(t.Context(), Query{}); err != nil {
				t.Error(err)
			}
		}
	})
	g.Wait()
	tally.flush(t.Context())
	again, err := New(config, Deps{State: tally.deps.State, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	again.Load(t.Context())
	if r := report(t, again, Query{Days: 2}); r.Domains[0].Kinds[0].Messages != 400 {
		t.Errorf("%d of 400 were counted and kept", r.Domains[0].Kinds[0].Messages)
	}
}

func TestDamagedCountsAreLeftOut(t *testing.T) {
	today := dayOf(time.Now())
	good, err := encode(&record{Matrix: Matrix{mta.Accept: {mta.Taken: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	state := &table{m: map[string][]byte{}}
	for key, val := range map[string]string{
		today + " example.org shadow":   string(good),
		today + " example.org receipt":  "{",
		today + " example.net shadow":   `{"v": 2}`,
		today + " example.org lost":     string(good),
		today + " shadow":               string(good),
		"2999-99-99 example.org shadow": string(good),
	} {
		state.m[namespace+"\x00"+key] = []byte(val)
	}
	tally, err := New(config, Deps{State: state, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	tally.Load(t.Context())
	if r := report(t, tally, Query{}); len(r.Domains) != 1 || len(r.Domains[0].Kinds) != 1 || r.Domains[0].Kinds[0].Messages != 3 {
		t.Errorf("got %+v", r)
	}
}

func TestABypassRateThatIsTooHighRaisesAnAlarmOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards events
		var events []string
		reg := prometheus.NewRegistry()
		tally, stop := running(t, &table{}, func(e mta.Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, fmt.Sprintf("%s %s %s: %s", e.Kind, e.Subject, e.Level, e.Text))
		}, reg)
		defer stop()
		expect := func(n int, last string) {
			t.Helper()
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(events) != n || n > 0 && !strings.Contains(events[n-1], last) {
				t.Errorf("events are %q", events)
			}
		}
		tally.Add(pair(mta.PairShadow, mta.Accept, mta.RefusedContent))
		for range 48 {
			tally.Add(pair(mta.PairShadow, mta.Accept, mta.Taken))
		}
		expect(0, "") // 1 of 49
		tally.Add(pair(mta.PairShadow, mta.Mark, mta.Taken))
		expect(1, "parity_bypass example.org alarm: The primary of example.org refuses mail that we take: 1 of 50 messages compared while it was up (2.0 %) in 7 days")
		want := `
# HELP understudy_parity_bypass_rate Share of what we take that the primary refuses for its content, in the last days.
# TYPE understudy_parity_bypass_rate gauge
understudy_parity_bypass_rate{domain="example.org",kind="shadow"} 0.02
`
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "understudy_parity_bypass_rate", "understudy_parity_over_block_rate"); err != nil {
			t.Error(err)
		}
		expect(1, "")
		for range 50 {
			tally.Add(pair(mta.PairShadow, mta.Accept, mta.Taken))
		}
		expect(2, "parity_bypass example.org over") // 1 of 100 is not above
		for range 60 {
			tally.Add(pair(mta.PairReceipt, mta.Accept, mta.RefusedContent))
		}
		expect(3, "60 of 60 messages taken while it was away (100.0 %)")
		time.Sleep(8 * 24 * time.Hour) // no mail at all
		expect(4, "parity_bypass example.org over")
	})
}

// Whatever stands in the table, it is read as a record or not at all, and a record is read back as it was.
func FuzzDecodeRecord(f *testing.F) {
	r := &record{}
	r.count(mta.Pair{Ours: mta.Accept, Theirs: mta.RefusedContent, Reply: mta.Reply{Code: 554, Text: "spam"}})
	b, err := encode(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("2026-11-23 example.org shadow", b)
	f.Add("2026-11-23  x", []byte(`{"v":1,"matrix":{"accept":{"accepted":9223372036854775807}}}`))
	f.Fuzz(func(t *testing.T, key string, val []byte) {
		if p, err := parsePlace(key); err == nil && p.String() != key {
			t.Errorf("%q is read as %q", key, p)
		}
		r, err := decode(val)
		if err != nil {
			return
		}
		b, err := encode(r)
		if err != nil {
			t.Fatalf("%q: %v", val, err)
		}
		back, err := decode(b)
		if err != nil || back.Matrix != r.Matrix {
			t.Errorf("%q is read back as %q (%v)", val, b, err)
		}
	})
}
