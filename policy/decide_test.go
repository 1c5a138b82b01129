package policy

import (
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
)

func TestWhoIsNamedIsTakenAndOnlyTheCompleteAndFreshOrThePrimaryRefuse(t *testing.T) {
	list, db := &view{name: "list"}, &view{name: "db"}
	good, bad := entry{good: true, at: 1}, entry{at: 1}
	tests := []struct {
		name    string
		h       hearing
		verdict Verdict
		source  string
		known   bool
	}{
		{"postmaster, before everything", hearing{always: true, complete: true, fresh: true, slowest: list}, Accept, "always_taken", false},
		{"listed", hearing{listed: list, alive: true, learned: bad}, Accept, "list", true},
		{"in the database", hearing{asked: db, alive: true, learned: bad}, Accept, "db", true},
		{"all are accepted", hearing{acceptAll: true, alive: true, learned: bad}, Accept, "accept_all", false},
		{"learned, though not listed", hearing{complete: true, fresh: true, slowest: list, alive: true, learned: good}, Accept, "learned", true},
		{"not in a complete and fresh list", hearing{complete: true, fresh: true, slowest: list, unknown: AcceptUnknown}, Reject, "list", false},
		{"not in a complete list that is stale", hearing{complete: true, slowest: list}, Defer, "unknown", false},
		{"not in a list that is not complete", hearing{fresh: true}, Defer, "unknown", false},
		{"refused by the primary", hearing{fresh: true, alive: true, learned: bad, unknown: AcceptUnknown}, Reject, "learned", false},
		{"refused by the primary long ago", hearing{fresh: true, learned: bad}, Defer, "unknown", false},
		{"known long ago", hearing{fresh: true, learned: good}, Defer, "unknown", false},
		{"unknown, accepted", hearing{unknown: AcceptUnknown}, Accept, "unknown", false},
		{"unknown, rejected", hearing{unknown: RejectUnknown}, Reject, "unknown", false},
	}
	for _, tt := range tests {
		f := tt.h.decide()
		if f.verdict != tt.verdict || f.source != tt.source || f.known != tt.known {
			t.Errorf("%s: got %v by %s, known %v", tt.name, f.verdict, f.source, f.known)
		}
		if reply := f.reply("example.org"); (reply == nil) != (f.verdict == Accept) || f.verdict == Defer && reply.Code != 450 || f.verdict == Reject && reply.Code != 550 {
			t.Errorf("%s: the reply is %v", tt.name, reply)
		}
	}
}

func TestWhatAReplySaysOfTheRecipient(t *testing.T) {
	tests := []struct {
		reply mta.Reply
		want  lesson
	}{
		{mta.Reply{Code: 250, Enhanced: "2.1.5"}, exists},
		{mta.Reply{Code: 251}, exists},
		{mta.Reply{Code: 252}, nothing},
		{mta.Reply{Code: 450, Enhanced: "4.1.1"}, nothing},
		{mta.Reply{Code: 550, Enhanced: "5.1.1"}, missing},
		{mta.Reply{Code: 550, Enhanced: "5.1.10"}, missing},
		{mta.Reply{Code: 550, Enhanced: "5.7.1"}, nothing}, // the client is blocked
		{mta.Reply{Code: 552, Enhanced: "5.2.2"}, nothing}, // the mailbox is full, so it exists
		{mta.Reply{Code: 550}, maybeMissing},
		{mta.Reply{Code: 554}, nothing},
		{mta.Reply{}, nothing},
	}
	for _, tt := range tests {
		if got := lessonOf(tt.reply); got != tt.want {
			t.Errorf("%v: got %v, want %v", tt.reply, got, tt.want)
		}
	}
}

func TestARefusalNeverTakesThePlaceOfAGoodEntryThatIsAlive(t *testing.T) {
	rules := DefaultConfig().Learned
	now := time.Unix(1_800_000_000, 0)
	ago := func(d time.Duration) int64 { return now.Add(-d).Unix() }
	const day = 24 * time.Hour
	fresh, old, dead := entry{at: ago(time.Hour), good: true, how: ByRcpt}, entry{at: ago(30 * day), good: true, how: ByRcpt}, entry{at: ago(32 * day), good: true, how: ByRcpt}
	no := entry{at: ago(time.Hour), how: ByRcpt}
	tests := []struct {
		name          string
		old           entry
		known         bool
		l             lesson
		how           How
		n             nature
		good, changed bool
	}{
		{"a new good one", entry{}, false, exists, ByRcpt, notTried, true, true},
		{"a new bad one", entry{}, false, missing, ByRcpt, notTried, false, true},
		{"a refusal of a good one", fresh, true, missing, ByRcpt, tells, true, false},
		{"a refusal of a good one, much later", old, true, missing, ByRcpt, tells, true, false},
		{"a refusal of one that is dead", dead, true, missing, ByRcpt, tells, false, true},
		{"a bad one that exists now", no, true, exists, ByDelivery, tells, true, true},
		{"the same again soon", entry{at: ago(time.Minute), good: true}, true, exists, ByRcpt, tells, true, false},
		{"the same again later", fresh, true, exists, ByRcpt, tells, true, true},
		{"a yes of one who takes all", entry{}, false, exists, ByRcpt, takesAll, false, false},
		{"a no of one who refuses all", entry{}, false, missing, ByCallout, refusesAll, false, false},
		{"a refusal without a reason, in traffic", entry{}, false, maybeMissing, ByRcpt, tells, false, false},
		{"a refusal without a reason, when asked", entry{}, false, maybeMissing, ByCallout, tells, false, true},
		{"a refusal without a reason, of one not tried yet", entry{}, false, maybeMissing, ByCallout, notTried, false, false},
	}
	for _, tt := range tests {
		got, changed := weigh(tt.old, tt.known, tt.l, tt.how, tt.n, now, rules)
		if changed != tt.changed || changed && got.good != tt.good || changed && got.at != now.Unix() {
			t.Errorf("%s: got %+v, changed %v", tt.name, got, changed)
		}
	}
	got, changed := weigh(fresh, true, missing, ByCallout, tells, now, rules)
	if !changed || !got.good || got.at != fresh.at || got.tried != now.Unix() {
		t.Errorf("a callout in vain: got %+v, changed %v", got, changed)
	}
}

func TestTheLivesOfEntriesAreThoseOfPostfix(t *testing.T) {
	rules := DefaultConfig().Learned
	now := time.Unix(1_800_000_000, 0)
	const day = 24 * time.Hour
	tests := []struct {
		good                bool
		age, tried          time.Duration
		lives, aged, ending bool
	}{
		{true, 0, 99 * day, true, false, false},
		{true, 7*day - time.Second, 99 * day, true, false, false},
		{true, 7 * day, 99 * day, true, true, false},
		{true, 7 * day, time.Hour, true, false, false},
		{true, 24 * day, 99 * day, true, true, true},
		{true, 31 * day, 99 * day, false, true, true},
		{false, time.Hour, 99 * day, true, false, false},
		{false, 3 * time.Hour, 99 * day, true, true, false},
		{false, 3 * day, 99 * day, false, true, false},
	}
	for _, tt := range tests {
		e := entry{at: now.Add(-tt.age).Unix(), tried: now.Add(-tt.tried).Unix(), good: tt.good}
		if l, a, n := e.lives(now, rules), e.aged(now, rules), e.ending(now, rules); l != tt.lives || a != tt.aged || n != tt.ending {
			t.Errorf("good %v, %v old: lives %v, aged %v, ending %v", tt.good, tt.age, l, a, n)
		}
	}
}

func TestWhatToAskNow(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	want := map[string]bool{"a": true}
	tests := []struct {
		name  string
		d     pupil
		local string
		ok    bool
	}{
		{"its nature first", pupil{wanted: want}, "", true},
		{"then who is wanted", pupil{wanted: want, nature: tells, course: course{judged: now}}, "a", true},
		{"its nature once a day", pupil{wanted: want, nature: tells, course: course{judged: now.Add(-judgeEvery)}}, "", true},
		{"nobody is wanted", pupil{nature: tells, course: course{judged: now}}, "", false},
		{"it takes all", pupil{wanted: want, nature: takesAll, course: course{judged: now}}, "", false},
		{"it rests", pupil{wanted: want, course: course{rest: now.Add(1)}}, "", false},
		{"it is being asked", pupil{wanted: want, course: course{busy: true}}, "", false},
	}
	for _, tt := range tests {
		if local, ok := tt.d.next(now); local != tt.local || ok != tt.ok {
			t.Errorf("%s: got %q, %v", tt.name, local, ok)
		}
	}
}

func TestAPrimaryThatDoesNotAnswerIsLeftAloneLongerAndLonger(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var c course
	for _, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
		if c.ended(false, now, 30); c.rest.Sub(now) != want {
			t.Errorf("it rests %v, want %v", c.rest.Sub(now), want)
		}
	}
	for range 99 {
		c.ended(false, now, 30)
	}
	if c.rest.Sub(now) != maxRest {
		t.Errorf("it rests %v, want %v", c.rest.Sub(now), maxRest)
	}
	if c.ended(true, now, 30); c.rest.Sub(now) != 2*time.Second {
		t.Errorf("after a reply it rests %v, want 2s", c.rest.Sub(now))
	}
}

func TestTheNatureOfAPrimary(t *testing.T) {
	r := func(code int) mta.Reply { return mta.Reply{Code: code} }
	tests := []struct {
		invented, postmaster int
		want                 nature
		ok                   bool
	}{
		{250, 0, takesAll, true}, {550, 250, tells, true}, {550, 550, refusesAll, true}, {450, 0, notTried, false}, {550, 450, notTried, false},
	}
	for _, tt := range tests {
		if got, ok := natureOf(r(tt.invented), r(tt.postmaster)); got != tt.want || ok != tt.ok {
			t.Errorf("%d and %d: got %v, %v", tt.invented, tt.postmaster, got, ok)
		}
	}
}

func TestWhenToLookAgain(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	tests := []struct {
		failures int
		jitter   float64
		want     time.Duration
	}{
		{0, 0, 15 * time.Minute}, {0, 1, 13*time.Minute + 30*time.Second}, {1, 0, 10 * time.Second}, {2, 0, 20 * time.Second}, {9, 0, 15 * time.Minute}, {1 << 30, 0, 15 * time.Minute},
	}
	for _, tt := range tests {
		if got := nextLook(now, 15*time.Minute, tt.failures, tt.jitter).Sub(now); got != tt.want {
			t.Errorf("%d failures: %v, want %v", tt.failures, got, tt.want)
		}
	}
}

func TestAnAliasHasTheListsOfItsDomainAndItsOwnPrimary(t *testing.T) {
	file := t.TempDir() + "/list"
	write(t, file, "alice@example.org\n")
	p := loaded(t, DefaultConfig(), map[string]Domain{
		"example.org": {Recipients: file}, "example.com": {AliasOf: "Example.ORG"}, "example.net": {Sources: []string{"learned"}, Unknown: RejectUnknown},
	}, quiet.Log)
	p.Learn(path(t, "new@example.com"), mta.Reply{Code: 250}, ByDelivery)
	p.Learn(path(t, "new@example.net"), mta.Reply{Code: 250}, ByDelivery)
	wants(t, p, map[string]string{
		"alice@example.com": "taken", "bob@example.com": "550 5.1.1", "new@example.com": "taken", "new@example.org": "550 5.1.1",
		"new@example.net": "taken", "new+x@example.net": "taken", "old@example.net": "550 5.1.1",
	})
	if r, err := p.Recipient(t.Context(), nil, path(t, "alice@example.com")); err != nil || r.Dest != "example.com" {
		t.Errorf("got %+v (%v)", r, err)
	}
}

func TestAnAnswerNamesWhoGaveItAndHowOldItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := t.TempDir() + "/list"
		write(t, file, "alice@example.org\n")
		p := loaded(t, DefaultConfig(), map[string]Domain{"example.org": {Recipients: file}, "example.net": {Sources: []string{"learned"}}}, quiet.Log)
		p.Learn(path(t, "a@example.net"), mta.Reply{Code: 250}, ByRcpt)
		p.Learn(path(t, "b@example.net"), mta.Reply{Code: 550, Enhanced: "5.1.1"}, ByCallout)
		time.Sleep(time.Hour)
		for to, want := range map[string]Answer{
			"alice@example.org":   {Verdict: Accept, Source: file, Known: true, Age: time.Hour},
			"bob@example.org":     {Verdict: Reject, Source: file, Age: time.Hour},
			"postmaster":          {Verdict: Accept, Source: "always_taken"},
			"a@example.net":       {Verdict: Accept, Source: "learned", Known: true, Age: time.Hour},
			"b@example.net":       {Verdict: Reject, Source: "learned", Age: time.Hour},
			"c@example.net":       {Verdict: Defer, Source: "unknown"},
			"a@elsewhere.example": {Verdict: Reject, Source: "relay"},
		} {
			got, err := p.Lookup(t.Context(), path(t, to))
			if err != nil || got.Verdict != want.Verdict || got.Source != want.Source || got.Known != want.Known || got.Age.Round(time.Second) != want.Age {
				t.Errorf("%s: got %+v (%v), want %+v", to, got, err, want)
			}
		}
		a, err := p.Lookup(t.Context(), path(t, "b@example.net"))
		if err != nil || len(a.Says) != 1 || a.Says[0].Says != "does not exist, by callout" || !a.Says[0].Fresh {
			t.Errorf("got %+v (%v)", a.Says, err)
		}
		time.Sleep(3 * 24 * time.Hour)
		wants(t, p, map[string]string{"b@example.net": "450 4.1.1", "a@example.net": "taken"})
		time.Sleep(28 * 24 * time.Hour)
		wants(t, p, map[string]string{"a@example.net": "450 4.1.1"})
	})
}
