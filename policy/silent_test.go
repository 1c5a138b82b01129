package policy

import (
	"strings"
	"testing"

	"understudy/internal/mta"
)

// silent is a Resolver of which everything is told but what it knows.
type silent struct{ Resolver }

func (silent) Silent() bool { return true }

func TestWithoutAnyResolverMailIsTakenAndMarkedNotDeferredForEver(t *testing.T) {
	p := judgeWith(t, world(), nil)
	env := greeted(t, "192.0.2.67", "a.example", "alice@servfail.example")
	env.Verdict = p.Sender(t.Context(), env)
	if got := rcpt(t, p, env, "bob@example.org"); !strings.HasPrefix(got, "451 4.1.8") {
		t.Errorf("one domain in trouble: %s", got)
	}
	p.deps.Resolver = silent{p.deps.Resolver}
	env = greeted(t, "192.0.2.67", "a.example", "alice@servfail.example")
	env.Verdict = p.Sender(t.Context(), env)
	if got := rcpt(t, p, env, "bob@example.org"); got != "taken" {
		t.Errorf("no resolver: %s", got)
	}
	env.Rcpts = []mta.Recipient{{Addr: path(t, "bob@example.org"), Dest: "example.org"}}
	v, _, err := p.Content(t.Context(), env, mailOf(plainMail))
	if err != nil || v.Action != mta.Mark || !strings.Contains(names(v.Findings), "sender:unresolved") {
		t.Errorf("content: %v %s (%v)", v.Action, names(v.Findings), err)
	}
	env = greeted(t, "192.0.2.67", "a.example", "boss@troubled.example")
	env.Verdict = p.Sender(t.Context(), env)
	if got := rcpt(t, p, env, "bob@example.org"); !strings.HasPrefix(got, "451") {
		t.Errorf("a sender of ours whom nothing proves: %s", got)
	}
}
