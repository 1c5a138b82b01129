package inbound

import (
	"strings"
	"testing"

	"understudy/internal/testkit"
)

// Whatever stands where a careless server would see the end of a message: one message goes in, and at most one comes
// out, in which no server can see another end once it is dot-stuffed again.
func TestNothingIsSmuggled(t *testing.T) {
	for _, newline := range []BareNewline{NormalizeNewlines, RejectBareNewlines} {
		for _, way := range []struct{ secured, inline bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
			cfg := testConfig(t)
			cfg.BareNewline, cfg.MaxErrors = newline, 1000
			primary := &scripted{}
			r := start(t, cfg, func(d *Deps) {
				if way.inline {
					d.Relay, d.Judge = primary, &testJudge{}
				}
			})
			all := r.spool.all
			if way.inline {
				all = primary.all
			}
			c := dial(t, r.addr())
			c.want("220")
			if way.secured {
				c.startTLS(nil)
			}
			c.say("EHLO x", "250")
			for _, v := range testkit.Smuggling() {
				before := len(all())
				c.transaction()
				c.say("DATA", "354")
				c.send(v.Octets("alice@example.org"))
				reply := c.reply()
				c.say("NOOP", "250 2.0.0 done") // so there was one reply
				taken := all()[before:]
				if refused := strings.HasPrefix(reply, "550 5.6.0"); refused && newline == RejectBareNewlines && len(taken) == 0 {
					continue
				}
				if !strings.HasPrefix(reply, "250") || len(taken) != 1 {
					t.Errorf("%s, %s: got %q and %d messages", newline, v.Name, reply, len(taken))
					continue
				}
				checkNoOtherEnd(t, v.Name, taken[0].content)
			}
		}
	}
}

func checkNoOtherEnd(t *testing.T, name, content string) {
	t.Helper()
	if s := strings.ReplaceAll(content, "\r\n", ""); strings.ContainsAny(s, "\r\n") {
		t.Errorf("%s: bare newline in %q", name, content)
	}
	if !strings.HasSuffix(content, "\r\n") || !strings.Contains(content, "Subject: inner\r\n") {
		t.Errorf("%s: content is not whole: %q", name, content)
	}
	stuffed := strings.ReplaceAll("\r\n"+content, "\r\n.", "\r\n..")
	for line := range strings.FieldsFuncSeq(stuffed, func(r rune) bool { return r == '\r' || r == '\n' }) {
		if line == "." {
			t.Errorf("%s: a line of one dot in %q", name, stuffed)
		}
	}
}
