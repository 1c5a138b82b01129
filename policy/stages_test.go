package policy

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/header"
	"understudy/internal/mta"
)

func TestHeloNamesAreJudgedByTheirLooks(t *testing.T) {
	for helo, want := range map[string]string{
		"mail.example.com":                      "",
		"MAIL.example.com.":                     "",
		"[192.0.2.10]":                          "",
		"[ipv6:2001:db8::1]":                    "helo:foreign-address",
		"[192.0.2.11]":                          "helo:foreign-address",
		"[203.0.113.2]":                         "helo:our-name",
		"mx2.example.net":                       "helo:our-name",
		"MX2.Example.NET.":                      "helo:our-name",
		"192.0.2.10":                            "helo:bare-address",
		"2001:db8::1":                           "helo:bare-address",
		"localhost":                             "helo:not-fqdn",
		"win-3k2":                               "helo:not-fqdn",
		"host_1.example.com":                    "", // such hosts send real mail
		"-bad.example":                          "helo:syntax",
		"a b":                                   "helo:syntax",
		"[not an address]":                      "helo:syntax",
		"x.(mail.example.net[192.0.2.10])":      "helo:planted-address",
		"[192.0.2.10] (mail":                    "helo:planted-address",
		"mail.example.net([IPv6:2001:db8::10])": "helo:planted-address",
		"x\t192.0.2.10":                         "helo:planted-address",
		"bücher.example":                        "",
		"":                                      "",
	} {
		env := greeted(t, "192.0.2.10", helo, "")
		if got := heloFault(env.Peer, "mx2.example.net"); got != want {
			t.Errorf("%q: got %q, want %q", helo, got, want)
		}
	}
	early := greeted(t, "192.0.2.10", "mail.example.com", "").Peer
	early.Early = true
	if got := names(greeting(early, "mx2.example.net")); got != "client:early" {
		t.Errorf("a client that talks early: %q", got)
	}
}

func FuzzGreeting(f *testing.F) {
	for _, s := range []string{"mail.example.com", "x.(mail[192.0.2.10])", "[IPv6:::1]", "\x00", "IPv6:", strings.Repeat("ä", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, helo string) {
		for _, found := range greeting(greeted(t, "192.0.2.10", helo, "").Peer, "mx2.example.net") {
			if _, ok := defaultFindings[found.Name]; !ok {
				t.Errorf("%q is %q, which nobody knows", helo, found.Name)
			}
			for _, c := range found.Detail {
				if c < ' ' || c > '~' {
					t.Errorf("%q is told as %q", helo, found.Detail)
				}
			}
		}
	})
}

func TestReverseNamesOfHouseholds(t *testing.T) {
	for name, want := range map[string]bool{
		"cpe-192-0-2-69.isp.example":            true,
		"69.2.0.192.pool.example":               true,
		"host69-2-0-192.example":                true,
		"192.000.002.069.example":               true,
		"dsl-berlin-17.example":                 true,
		"dyn.example.net":                       true,
		"dhcp12.campus.example":                 true,
		"static-192-0-2-69.isp.example":         false,
		"mail.192-0-2-69.example":               false,
		"mail.example.org":                      false,
		"mx1-2.example.org":                     false,
		"a69-2.smtp-out.eu-west-1.mail.example": false,
		"o192.mail.example":                     false,
		"dynamics.example":                      false,
	} {
		if got := looksDynamic(name, netip.MustParseAddr("192.0.2.69")); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if looksDynamic("a.b.example", netip.MustParseAddr("2001:db8::1")) {
		t.Error("an IPv6 address")
	}
}

func TestWeightsAndScores(t *testing.T) {
	general := Rules{Stages: stageNames, Weights: map[string]float64{"helo:": 0, "spf:fail": 6, "dnsbl:": 2, "dnsbl:a.example": 3}, Mark: 3, Quarantine: -1, Defer: 7, Reject: 8}
	own := Rules{Weights: map[string]float64{"dnsbl:": 1, "spoof:own-domain": 2.5}, Quarantine: 5, Reject: -1}
	spf := mta.Finding{Name: "spf:fail", Weight: 4}
	tests := []struct {
		name   string
		rules  *rules
		found  []mta.Finding
		score  float64
		action mta.Action
	}{
		{"nothing", rulesOf(Rules{}, general), nil, 0, mta.Accept},
		{"below every score", rulesOf(Rules{}, general), []mta.Finding{find("rdns:none", "")}, 1, mta.Accept},
		{"a configured weight", rulesOf(Rules{}, general), []mta.Finding{spf}, 6, mta.Mark},
		{"the weight of a kind", rulesOf(Rules{}, general), []mta.Finding{spf, {Name: "dnsbl:b.example", Weight: 9}}, 8, mta.Reject},
		{"a weight of its own goes before", rulesOf(Rules{}, general), []mta.Finding{{Name: "dnsbl:a.example", Weight: 9}}, 3, mta.Mark},
		{"a kind that is lifted", rulesOf(Rules{}, general), []mta.Finding{find("helo:our-name", "")}, 0, mta.Accept},
		{"what speaks for it", rulesOf(Rules{}, general), []mta.Finding{spf, {Name: "dnswl:w.example", Weight: -4}}, 2, mta.Accept},
		{"deferred by score", rulesOf(Rules{}, general), []mta.Finding{spf, find("rdns:none", "")}, 7, mta.Defer},
		{"asked for by itself", rulesOf(Rules{}, general), []mta.Finding{find("sender:null-mx", "")}, 0, mta.Reject},
		{"the domain's weight of a kind covers all of it", rulesOf(own, general), []mta.Finding{{Name: "dnsbl:a.example", Weight: 9}}, 1, mta.Accept},
		{"a weight takes the action away", rulesOf(own, general), []mta.Finding{find("spoof:own-domain", "")}, 2.5, mta.Accept},
		{"the domain's scores", rulesOf(own, general), []mta.Finding{spf, spf}, 12, mta.Defer},
		{"the domain's quarantine", rulesOf(own, general), []mta.Finding{spf}, 6, mta.Quarantine},
		{"ten tenths are one", rulesOf(Rules{Mark: 1}, general), slices.Repeat([]mta.Finding{{Name: "rspamd:x", Weight: 0.1}}, 10), 1, mta.Mark},
		{"a stage that is off", rulesOf(Rules{Stages: []string{stageFilters}}, general), []mta.Finding{spf, {Name: "clamd:Eicar", Action: mta.Reject}}, 0, mta.Reject},
		{"a filter's absence has no weight", rulesOf(Rules{Weights: map[string]float64{"filter:": 0}}, general), []mta.Finding{{Name: "filter:x-down", Action: mta.Defer}}, 0, mta.Defer},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := tt.rules.conclude(tt.rules.weigh(tt.found))
			if v.Score != tt.score || v.Action != tt.action {
				t.Errorf("score %v, %v; want %v, %v", v.Score, v.Action, tt.score, tt.action)
			}
		})
	}
}

func TestMistakesInTheRulesAreNamed(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config, *Domain)
		key    string
		text   string
	}{
		{"a stage that is none", func(c *Config, _ *Domain) { c.Judge.Stages = []string{"dnsbl"} }, "judge.stages[0]", "known are client, lists"},
		{"a stage twice", func(_ *Config, d *Domain) { d.Judge.Stages = []string{"client", "client"} }, "judge.stages[1]", "twice"},
		{"a finding that is none", func(c *Config, _ *Domain) { c.Judge.Weights = map[string]float64{"spf:fial": 1} }, "judge.weights.spf:fial", "known are spf:fail, spf:permerror"},
		{"a kind that is none", func(_ *Config, d *Domain) { d.Judge.Weights = map[string]float64{"spff:": 1} }, "judge.weights.spff:", "names begin with"},
		{"no kind", func(c *Config, _ *Domain) { c.Judge.Weights = map[string]float64{"spf": 1} }, "judge.weights.spf", "names begin with"},
		{"the absence of a filter", func(c *Config, _ *Domain) { c.Judge.Weights = map[string]float64{"filter:clamd-down": 0} }, "judge.weights.filter:clamd-down", "accept_and_mark"},
		{"too much", func(c *Config, _ *Domain) { c.Judge.Weights = map[string]float64{"spf:fail": 1e6} }, "judge.weights.spf:fail", "not between"},
		{"a score of 0 for all", func(c *Config, _ *Domain) { c.Judge.Reject = 0 }, "judge.reject", "-1 for never"},
		{"a score that nobody reaches", func(_ *Config, d *Domain) { d.Judge.Reject = 1e9 }, "judge.reject", "at most 1000"},
		{"a list", func(c *Config, _ *Domain) { c.Judge.DNSLists = []string{"a.b", "x"} }, "judge.dns_lists[1]", "full name"},
		{"a name of a list that is none", func(c *Config, _ *Domain) { c.Judge.DNSListNames = map[string]string{"a.b": "x"} }, "judge.dns_list_names.a.b", "not among"},
		{"a name that is none", func(c *Config, _ *Domain) {
			c.Judge.DNSLists, c.Judge.DNSListNames = []string{"A.b=127.0.0.2*3"}, map[string]string{"a.b": "x y"}
		}, "judge.dns_list_names.a.b", "not a name"},
		{"a wait", func(c *Config, _ *Domain) { c.Judge.DNSListsWait = 0 }, "judge.dns_lists_wait", "6s"},
		{"a filter that is none", func(c *Config, _ *Domain) { c.Judge.Filters = []string{"rspamd"} }, "judge.filters[0]", "no filter"},
		{"hindsight", func(c *Config, _ *Domain) { c.HindsightAfter = -1 }, "hindsight_after", "0 is never"},
		{"greylist", func(c *Config, _ *Domain) { c.Judge.Greylist.Wait = 0 }, "judge.greylist.wait", "between"},
		{"DKIM", func(c *Config, _ *Domain) { c.Auth.Signatures = 0 }, "auth.signatures", "1 to"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, d := DefaultConfig(), Domain{AcceptAll: true}
			tt.change(&c, &d)
			faults := append(c.Validate(), d.Validate()...)
			if len(faults) != 1 || faults[0].Key != tt.key || !strings.Contains(faults[0].Text, tt.text) {
				t.Errorf("got %+v", faults)
			}
		})
	}
	d := map[string]Domain{"example.org": {AcceptAll: true, Judge: Rules{Filters: []string{"clamd"}}}}
	if faults := CheckDomains(DefaultConfig(), d); len(faults) != 1 || faults[0].Key != "example.org.judge.filters[0]" {
		t.Errorf("got %+v", faults)
	}
	c := DefaultConfig()
	for name := range defaultFindings {
		c.Judge.Weights = map[string]float64{name: 1, kindOf(name): 1, "dnsbl:x.example": 1, "rspamd:": 2, "clamd:": 3, "milter:x": 1, "header:no-from": 0, "dmarc:reject": 4}
		if faults := c.Validate(); len(faults) > 0 {
			t.Errorf("%s: %+v", name, faults)
		}
	}
}

func TestAGreylistEntryWaitsPassesAndEnds(t *testing.T) {
	g := defaultJudge().Greylist
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	waits := grey{first: start.Unix()}
	passed := grey{first: start.Unix(), passed: at(time.Hour).Unix()}
	tests := []struct {
		name string
		e    grey
		at   time.Duration
		left time.Duration
	}{
		{"the first try", grey{}, 0, 5 * time.Minute},
		{"too soon", waits, 4 * time.Minute, time.Minute},
		{"in time", waits, 5 * time.Minute, 0},
		{"within two days", waits, 47 * time.Hour, 0},
		{"after two days it begins again", waits, 48 * time.Hour, 5 * time.Minute},
		{"it passed", passed, 30 * 24 * time.Hour, 0},
		{"it passed too long ago", passed, 37 * 24 * time.Hour, 5 * time.Minute},
	}
	for _, tt := range tests {
		e, left := tt.e.try(at(tt.at), g)
		if left != tt.left || (left == 0) != (e.passed == at(tt.at).Unix()) {
			t.Errorf("%s: %v left, %+v", tt.name, left, e)
		}
	}
}

func TestOnlySuspiciousClientsWait(t *testing.T) {
	p := judgeWith(t, world(), func(c *Config, _ map[string]Domain) { c.Judge.DNSLists = []string{"wl.example*-3"} })
	for _, tt := range []struct {
		name string
		env  *mta.Envelope
		want bool
	}{
		{"a good client", good(t), false},
		{"without a reverse name", greeted(t, "192.0.2.1", "a.example", "x@onlya.example"), true},
		{"with one that does not lead back", greeted(t, "192.0.2.66", "a.example", "x@onlya.example"), true},
		{"of nobody knows what", greeted(t, "192.0.2.67", "a.example", "x@onlya.example"), false},
		{"whose SPF fails", greeted(t, "192.0.2.67", "a.example", "alice@good.example"), true},
		{"whom a list vouches for", greeted(t, "192.0.2.10", "localhost", "x@onlya.example"), false},
	} {
		tt.env.Verdict = p.Sender(t.Context(), tt.env)
		for _, to := range []string{"postmaster@example.org", "bob@example.org"} {
			got := rcpt(t, p, tt.env, to)
			if waits := strings.HasPrefix(got, "451 4.7.1 greylisted, please try again in"); waits != (tt.want && to == "bob@example.org") {
				t.Errorf("%s to %s: %s", tt.name, to, got)
			}
		}
	}
	if !strings.Contains(p.log.String(), "greylist:wait") {
		t.Errorf("the log says %s", p.log)
	}
}

func TestANetworkThatCameBackIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state, cfg := &tables{}, DefaultConfig()
		domains := map[string]Domain{"example.org": {AcceptAll: true}}
		g := cfg.Judge.Greylist
		p, err := New(cfg, domains, Deps{Log: quiet.Log, State: state})
		if err != nil || p.Load(t.Context()) != nil {
			t.Fatal(err)
		}
		try := func(p *Policy, client, sender string) bool {
			return p.greylist.try(time.Now(), g, netip.MustParseAddr(client), path(t, sender), path(t, "bob@example.org")) == 0
		}
		for _, step := range []struct {
			after  time.Duration
			client string
			sender string
			want   bool
		}{
			{0, "192.0.2.1", "x@a.example", false},
			{4 * time.Minute, "192.0.2.99", "X@A.example", false}, // its neighbour, too soon
			{0, "192.0.3.1", "x@a.example", false},                // another network
			{2 * time.Minute, "192.0.2.50", "x@a.example", true},
			{0, "192.0.2.51", "new@b.example", true}, // the network is known
			{0, "192.0.3.1", "other@a.example", false},
			{0, "2001:db8::1", "x@a.example", false},
			{6 * time.Minute, "2001:db8::2", "x@a.example", true},
			{0, "2001:db8:0:1::2", "y@a.example", false},
			{30 * 24 * time.Hour, "192.0.2.1", "z@a.example", true},
			{30 * 24 * time.Hour, "192.0.2.1", "z@a.example", true}, // each mail gives it 36 days more
			{37 * 24 * time.Hour, "192.0.2.1", "z@a.example", false},
		} {
			time.Sleep(step.after)
			if got := try(p, step.client, step.sender); got != step.want {
				t.Errorf("%s from %s at %v: passes %v", step.sender, step.client, time.Now().UTC(), got)
			}
			p.rememberGreylist(t.Context())
		}
		time.Sleep(6 * time.Minute)
		try(p, "192.0.2.1", "z@a.example")
		p.rememberGreylist(t.Context())
		again, err := New(cfg, domains, Deps{Log: quiet.Log, State: state})
		if err != nil || again.Load(t.Context()) != nil {
			t.Fatal(err)
		}
		if !try(again, "192.0.2.7", "q@a.example") || try(again, "192.0.3.1", "q@a.example") {
			t.Error("a restart forgot who passed, or lets everyone through")
		}
	})
}

func TestTheGreylistIsBoundedAndAFloodForgetsNobodyWhoPassed(t *testing.T) {
	g := defaultJudge().Greylist
	g.MaxEntries = 500
	list, now := newGreylist(), time.Now()
	from, to := path(t, "x@a.example"), path(t, "bob@example.org")
	known := netip.MustParseAddr("192.0.2.1")
	list.try(now, g, known, from, to)
	now = now.Add(6 * time.Minute)
	if list.try(now, g, known, from, to) != 0 {
		t.Fatal("it does not pass")
	}
	for i := range 20_000 {
		list.try(now.Add(time.Duration(i)*time.Millisecond), g, netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), from, to)
		if len(list.entries) > g.MaxEntries || len(list.dirty) > g.MaxEntries {
			t.Fatalf("%d entries", len(list.entries))
		}
	}
	if list.try(now.Add(time.Hour), g, known, from, to) != 0 {
		t.Error("a flood made us forget who passed")
	}
	g.MaxEntries = 0
	if newGreylist().try(now, g, known, from, to) != 0 {
		t.Error("without a greylist somebody waits")
	}
}

func TestDamagedGreylistEntriesAreReadOver(t *testing.T) {
	g, now := defaultJudge().Greylist, time.Now()
	whole := grey{first: now.Unix() - 600, passed: now.Unix() - 60}
	key := keyOf("a").String()
	for name, tt := range map[string]struct {
		key string
		val []byte
	}{
		"no key":          {"x", whole.encode()},
		"a short key":     {key[:30], whole.encode()},
		"a short value":   {key, whole.encode()[:16]},
		"another version": {key, append([]byte{9}, whole.encode()[1:]...)},
		"from the future": {key, grey{first: now.Unix(), passed: now.Unix() + 3600}.encode()},
		"never begun":     {key, grey{passed: 5}.encode()},
	} {
		list := newGreylist()
		if list.restore(tt.key, tt.val, now, g) || len(list.entries) > 0 {
			t.Errorf("%s was believed", name)
		}
	}
	list := newGreylist()
	if !list.restore(key, whole.encode(), now, g) || list.entries[keyOf("a")] != whole {
		t.Errorf("got %+v", list.entries)
	}
}

func TestAFiltersGreylistIsOurs(t *testing.T) {
	p := judgeWith(t, world(), nil)
	env := good(t)
	rcpt(t, p, env, "bob@example.org")
	j := p.judging.Load()
	v := mta.Verdict{Findings: []mta.Finding{{Name: "rspamd:greylist"}}}
	if wait := p.filterGreylisted(j, j.general, env, v); wait < 4*time.Minute+58*time.Second || wait > 5*time.Minute {
		t.Errorf("it waits %v", wait)
	}
	if wait := p.filterGreylisted(j, j.general, env, mta.Verdict{}); wait != 0 {
		t.Error("it waits though nobody asks for it")
	}
	env.Rcpts[0].Addr = path(t, "postmaster@example.org")
	if wait := p.filterGreylisted(j, j.general, env, v); wait != 0 {
		t.Error("postmaster waits")
	}
}

func TestTheMarkCanMeanNothingElse(t *testing.T) {
	v := mta.Verdict{Action: mta.Mark, Score: 3.5, Findings: []mta.Finding{
		{Name: "spf:fail", Weight: 4}, {Name: "clamd:Evil\r\nX-Spam: no", Weight: -0.5}, {Name: "milter:" + strings.Repeat("ü", 200)},
	}}
	got := mark(&v)
	want := "X-Understudy-Verdict: mark; score=3.5;\r\n\tspf:fail=4;\r\n\tclamd:Evil??X-Spam:?no=-0.5;\r\n\tmilter:" + strings.Repeat("?", 93) + "=0\r\n"
	if got != want {
		t.Errorf("got %q", got)
	}
}

// A mark is one field, whatever findings are called.
func FuzzMark(f *testing.F) {
	f.Add("spf:fail", 1.5, 3)
	f.Add("a\r\nb: c", -1e300, 70)
	f.Fuzz(func(t *testing.T, name string, weight float64, n int) {
		v := mta.Verdict{Action: mta.Mark, Score: weight, Findings: slices.Repeat([]mta.Finding{{Name: name, Weight: weight}}, min(max(n, 0), 100))}
		field, fields := mark(&v), 0
		h, err := header.Scan(strings.NewReader(field+"\r\n"), func(f *header.Field) error {
			fields++
			if !f.Is(markField) || f.Longest > 998 {
				t.Errorf("%q", field)
			}
			return nil
		})
		if err != nil || fields != 1 || h.Octets != int64(len(field)) {
			t.Errorf("%d fields in %q (%v)", fields, field, err)
		}
	})
}

func TestContentThatCannotBeReadIsOurOwnFault(t *testing.T) {
	p := judgeWith(t, world(), nil)
	env := good(t)
	rcpt(t, p, env, "bob@example.org")
	broken := mta.Content{Size: 9, Open: func() (io.ReadCloser, error) { return nil, fmt.Errorf("disk") }}
	if _, _, err := p.Content(t.Context(), env, broken); err == nil {
		t.Error("it was judged")
	}
	if _, err := p.Clean(env, broken); err == nil {
		t.Error("it was cleaned")
	}
	if _, err := p.Hindsight(context.Background(), env, broken); err == nil {
		t.Error("it was judged again")
	}
}

func TestEveryFindingIsDocumentedWithItsWeightAndAction(t *testing.T) {
	page, err := os.ReadFile("../docs/judging.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range defaultFindings {
		weight, action := "", ""
		if f.Weight != 0 {
			weight = strconv.FormatFloat(f.Weight, 'f', -1, 64) + " "
		}
		class := "5."
		if f.Action != mta.Accept {
			action = f.Action.String() + " "
		}
		if f.Action == mta.Defer {
			class = "4."
		}
		row := fmt.Sprintf("\n| `%s` | %s| %s| %s%s |", name, weight, action, class, cmp.Or(f.Status, "7.1"))
		if !strings.Contains(string(page), row) {
			t.Errorf("docs/judging.md has no row%s", row)
		}
	}
	for _, name := range otherFindings {
		if !strings.Contains(string(page), "\n| `"+name+"` | ") {
			t.Errorf("docs/judging.md has no row of %s", name)
		}
	}
}
