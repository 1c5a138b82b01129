package policy

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
)

func TestThePrimarysReplyIsTheSendersAndIsLearned(t *testing.T) {
	p, stop := admitting(t, DefaultConfig(), map[string]Domain{"example.org": {Sources: []string{"learned"}}}, Deps{})
	defer stop()
	env := from(t, "192.0.2.1", "bob@example.net")
	for to, r := range map[string]mta.Reply{
		"alice@example.org": {Code: 250, Enhanced: "2.1.5", Text: "ok"},
		"gone@example.org":  {Code: 550, Enhanced: "5.1.1", Text: "no such user\nreally"},
		"full@example.org":  {Code: 552, Enhanced: "5.2.2", Text: "full"},
		"spam@example.org":  {Code: 554, Enhanced: "5.7.1", Text: "you are listed"},
		"grey@example.org":  {Code: 450, Enhanced: "4.2.0", Text: "greylisted"},
	} {
		if got := p.Heard(t.Context(), env, mta.Recipient{Addr: path(t, to), Dest: "example.org"}, r); got != r {
			t.Errorf("%s: got %v, want %v", to, got, r)
		}
	}
	wants(t, p, map[string]string{
		"alice@example.org": "taken", "gone@example.org": "550 5.1.1", "full@example.org": "450 4.1.1",
		"spam@example.org": "450 4.1.1", "grey@example.org": "450 4.1.1",
	})
}

func TestAPrimaryWithAmnesiaIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := t.TempDir() + "/list"
		write(t, file, "alice@example.org\nopen@wild.example\n@wild.example\n")
		pr, told := &primaries{}, &heard{}
		p, stop := admitting(t, DefaultConfig(), map[string]Domain{
			"example.org": {Recipients: file}, "wild.example": {Recipients: file}, "learned.example": {Sources: []string{"learned"}},
		}, Deps{Fragile: pr.isFragile, Events: told.event})
		defer stop()
		env := from(t, "192.0.2.1", "bob@example.net")
		hears := func(to, code, enhanced, text, want string) {
			t.Helper()
			r := mta.Reply{Code: 550, Enhanced: enhanced, Text: text}
			if code == "554" {
				r.Code = 554
			}
			addr := path(t, to)
			got := p.Heard(t.Context(), env, mta.Recipient{Addr: addr, Dest: addr.DomainKey()}, r)
			if want == "itself" && got != r || want != "itself" && !strings.HasPrefix(got.String(), want) {
				t.Errorf("%s: got %v, want %s", to, got, want)
			}
		}
		p.Heard(t.Context(), env, mta.Recipient{Addr: path(t, "carol@learned.example")}, mta.Reply{Code: 250})
		hears("alice@example.org", "550", "5.1.1", "unknown", "itself") // it has long been up
		told.want(t)

		for _, d := range []string{"example.org", "wild.example", "learned.example"} {
			pr.set(&pr.fragile, d, true)
		}
		hears("nobody@example.org", "550", "5.1.1", "unknown", "itself") // and is unknown here, too
		hears("nobody@wild.example", "550", "5.1.1", "unknown", "itself")
		hears("nobody@learned.example", "550", "5.1.1", "unknown", "itself")
		told.want(t)
		hears("open@wild.example", "550", "5.1.1", "unknown", "451 4.3.0")
		hears("alice@example.org", "554", "5.7.1", "Client host blocked", "451 4.3.0")
		told.want(t, "breaker_open wild.example alarm")
		hears("alice@example.org", "554", "5.7.1", "Relay access denied", "451 4.3.0")
		hears("alice+x@example.org", "550", "", "no", "451 4.3.0")
		hears("postmaster@example.org", "550", "5.1.1", "unknown", "451 4.3.0")
		hears("carol@learned.example", "550", "5.1.1", "unknown", "451 4.3.0")
		told.want(t, "breaker_open wild.example alarm", "breaker_open example.org alarm", "breaker_open learned.example alarm")
		// What it says now is not remembered against anybody.
		wants(t, p, map[string]string{"carol@learned.example": "taken", "nobody@learned.example": "450 4.1.1"})

		for _, d := range []string{"example.org", "wild.example", "learned.example"} {
			pr.set(&pr.fragile, d, false)
		}
		time.Sleep(14 * time.Minute)
		hears("alice@example.org", "550", "5.1.1", "unknown", "itself") // believed by now, and the alarm stays
		time.Sleep(3 * time.Minute)
		told.want(t, "breaker_open wild.example alarm", "breaker_open example.org alarm", "breaker_open learned.example alarm",
			"breaker_open learned.example over", "breaker_open wild.example over")
		time.Sleep(14 * time.Minute)
		told.want(t, "breaker_open wild.example alarm", "breaker_open example.org alarm", "breaker_open learned.example alarm",
			"breaker_open learned.example over", "breaker_open wild.example over", "breaker_open example.org over")
	})
}

func TestGuessingInlineMeetsTheLimitToo(t *testing.T) {
	pr := &primaries{}
	pr.set(&pr.up, "example.org", true)
	cfg := DefaultConfig()
	cfg.Limits.ClientUnknownPerMinute, cfg.Limits.Burst = 10, time.Minute
	p, stop := admitting(t, cfg, map[string]Domain{"example.org": {AcceptAll: true}}, Deps{Up: pr.isUp})
	defer stop()
	env := from(t, "192.0.2.1", "bob@example.net")
	for i := range 20 {
		got := placed(t, p, env, "x@example.org")
		if want := "inline"; i < 10 != strings.HasPrefix(got, want) {
			t.Fatalf("guess %d: %q", i, got)
		}
		p.Heard(t.Context(), env, mta.Recipient{Addr: path(t, "x@example.org")}, mta.Reply{Code: 550, Enhanced: "5.1.1"})
	}
}
