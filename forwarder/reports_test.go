package forwarder

import (
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/testkit"
)

func TestASenderIsToldOnlyIfItIsTheSenderAndAsked(t *testing.T) {
	from := mta.Path{Local: "bob", Domain: "example.net"}
	sure := Proof{Authentic: true, Clean: true}
	tests := []struct {
		name    string
		from    mta.Path
		notify  mta.Notify
		outcome mta.Outcome
		code    string
		proof   Proof
		want    bool
	}{
		{"proved", from, 0, mta.Quarantined, "5.1.1", sure, true},
		{"nothing known", from, 0, mta.Quarantined, "5.1.1", Proof{}, false},
		{"not authentic", from, 0, mta.Quarantined, "5.1.1", Proof{Clean: true}, false},
		{"not clean", from, 0, mta.Quarantined, "5.1.1", Proof{Authentic: true}, false},
		{"null sender", mta.Path{}, 0, mta.Quarantined, "5.1.1", sure, false},
		{"never", from, mta.NotifyNever, mta.Quarantined, "5.1.1", sure, false},
		{"failure", from, mta.NotifyFailure, mta.Quarantined, "5.1.1", sure, true},
		{"success only", from, mta.NotifySuccess, mta.Quarantined, "5.1.1", sure, false},
		{"looks like spam", from, 0, mta.Quarantined, "5.7.1", sure, false},
		{"deferred", from, 0, mta.Deferred, "4.2.0", sure, false},
		{"delivered", from, 0, mta.Delivered, "2.0.0", sure, false},
		{"delivered, and asked", from, mta.NotifySuccess, mta.Delivered, "2.0.0", sure, true},
	}
	for _, tt := range tests {
		r := mta.RcptResult{Outcome: tt.outcome, Reply: mta.Reply{Code: 550, Enhanced: tt.code}}
		if got := reportable(&mta.Envelope{From: tt.from}, &mta.Recipient{Notify: tt.notify}, &r, tt.proof); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestAReportGoesOutWithTheSettlement(t *testing.T) {
	for _, proved := range []bool{true, false} {
		p, origin := started(t, nil), started(t, nil)
		p.On(testkit.AtFinal, testkit.Say("554 5.2.3 too long for this list"))
		w := newWorld(t, "example.org", tier(p))
		w.routes.tiers["example.net"] = [][]mta.Primary{tier(origin)}
		if proved {
			w.proof = func(*mta.Envelope) Proof { return Proof{Authentic: true, Clean: true} }
		}
		id := w.put("Subject: hello\r\n\r\nsecret\r\n", "a@example.org", "b@example.org")
		w.start()
		if !proved {
			w.eventually("quarantine", func() bool { i := w.items(id); return len(i) == 1 && i[0].Held })
			w.stop()
			continue
		}
		w.eventually("an empty spool", func() bool { return w.left() == 0 })
		ms := origin.Messages()
		if len(ms) != 1 || ms[0].From != "" || ms[0].Rcpts[0] != "s1@example.net" {
			t.Fatalf("%+v", ms)
		}
		c := string(ms[0].Content)
		if !strings.Contains(c, "Final-Recipient: rfc822; a@example.org") || !strings.Contains(c, "Final-Recipient: rfc822; b@example.org") ||
			!strings.Contains(c, "Subject: hello") || strings.Contains(c, "secret") {
			t.Errorf("%s", c)
		}
		w.stop()
	}
}

func TestRelayedMailIsReportedOnlyToWhoAskedAndWhereThePrimaryDoesNot(t *testing.T) {
	for _, caps := range [][]string{{"PIPELINING", "DSN"}, {"PIPELINING"}} {
		p, origin := started(t, func(p *testkit.Primary) { p.Caps = caps }), started(t, nil)
		w := newWorld(t, "example.org", tier(p))
		w.routes.tiers["example.net"] = [][]mta.Primary{tier(origin)}
		w.proof = func(*mta.Envelope) Proof { return Proof{Authentic: true, Clean: true} }
		env := &mta.Envelope{ID: mta.NewID(time.Now()), Received: time.Now(), From: mta.Path{Local: "s", Domain: "example.net"}, Rcpts: []mta.Recipient{
			{Addr: mta.Path{Local: "asked", Domain: "example.org"}, Dest: "example.org", Notify: mta.NotifySuccess},
			{Addr: mta.Path{Local: "quiet", Domain: "example.org"}, Dest: "example.org"}}}
		w.putEnv(env, "x\r\n")
		w.start()
		w.eventually("an empty spool", func() bool { return w.left() == 0 })
		ms := origin.Messages()
		if len(caps) == 2 && len(ms) != 0 {
			t.Errorf("the primary reports itself: %+v", ms)
		}
		if len(caps) == 1 && (len(ms) != 1 || !strings.Contains(string(ms[0].Content), "Action: relayed") || strings.Contains(string(ms[0].Content), "quiet@")) {
			t.Errorf("%+v", ms)
		}
		w.stop()
	}
}
