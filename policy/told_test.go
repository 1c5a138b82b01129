package policy

import (
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
)

func TestWhoComesWhenHeWasToldIsNoLongerGreylisted(t *testing.T) {
	for left, want := range map[time.Duration]string{
		time.Millisecond: "in 1 seconds", 1400 * time.Millisecond: "in 2 seconds", 299700 * time.Millisecond: "in 300 seconds", 5 * time.Minute: "in 300 seconds",
	} {
		if got := waiting(left).Text; !strings.HasSuffix(got, want) {
			t.Errorf("%v are left: %q", left, got)
		}
	}
}

func TestARefusedRecipientIsLoggedWithoutAnIDThatIsNone(t *testing.T) {
	p := judgeWith(t, world(), nil)
	env := greeted(t, "192.0.2.67", "a.example", "alice@nullmx.example")
	env.ID = mta.ID{}
	env.Verdict = p.Sender(t.Context(), env)
	if got := rcpt(t, p, env, "bob@example.org"); !strings.HasPrefix(got, "550 5.7.27") || !strings.Contains(p.log.String(), "msg=judged step=rcpt peer=") {
		t.Errorf("%s\n%s", got, p.log)
	}
}
