package alert

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// talk plays a script to a box: "0 alarm a", "5 over a", "7 notice a", "9 down a" (an alarm in that state); a
// webhook that is "gone" from a second on takes nothing, until it is "back". It returns what was taken, with seconds.
func talk(t *testing.T, c Config, seconds int, script ...string) string {
	t.Helper()
	b := newBox(&c)
	var told []string
	gone := false
	for at := range seconds {
		now := epoch.Add(time.Duration(at) * time.Second)
		for _, line := range script {
			var when int
			var word, of string
			if _, err := fmt.Sscanf(line+" -", "%d %s %s", &when, &word, &of); err != nil {
				t.Fatal(err)
			}
			if when == at {
				gone = word == "gone" || gone && word != "back"
				say(b, word, of, now)
			}
		}
		b.tidy(now)
		for _, m := range b.take(now) {
			if gone {
				b.failed(m, now)
				continue
			}
			b.sent(m, now)
			e := m.summary()
			told = append(told, strings.TrimSpace(fmt.Sprintf("%d %v%s %s%s", at, e.Level, e.Details["state"], e.Subject, count(m))))
		}
	}
	return strings.Join(told, ", ")
}

func count(m batch) string {
	if len(m.events) == 1 {
		return ""
	}
	return fmt.Sprintf("×%d", len(m.events))
}

func say(b *box, word, of string, now time.Time) {
	e := mta.Event{Kind: "k", Subject: of, At: now, Text: word}
	switch word {
	case "notice":
	case "alarm":
		e.Level = mta.Alarm
	case "over":
		e.Level = mta.Over
	case "gone", "back":
		return
	default:
		e.Level, e.Details = mta.Alarm, map[string]string{"state": word}
	}
	b.put(e, now)
}

func TestWhatIsTold(t *testing.T) {
	tests := []struct {
		name   string
		script []string
		want   string
	}{
		{"an alarm and its end", []string{"0 alarm a", "100 over a"}, "0 alarm a, 100 over a"},
		{"the same again is no news", []string{"0 alarm a", "1 alarm a", "50 alarm a"}, "0 alarm a"},
		{"another state is", []string{"0 down a", "50 refusing a"}, "0 alarmdown a, 50 alarmrefusing a"},
		{"another subject is", []string{"0 alarm a", "1 alarm b"}, "0 alarm a, 1 alarm b"},
		{"an end soon after waits until it has settled", []string{"0 alarm a", "2 over a"}, "0 alarm a, 30 over a"},
		{"what is undone meanwhile is not told", []string{"0 alarm a", "2 over a", "4 alarm a"}, "0 alarm a"},
		{"after an end the next alarm is news", []string{"0 alarm a", "50 over a", "200 alarm a"}, "0 alarm a, 50 over a, 200 alarm a"},
		{"an end of an alarm of a former run", []string{"0 over a"}, "0 over a"},
		{"each notice is told", []string{"0 notice a", "1 notice a"}, "0 notice a, 1 notice a"},
		{"what a webhook misses is told when it is back", []string{"0 gone", "1 alarm a", "20 back"}, "32 alarm a"},
		{"but not what is over by then", []string{"0 gone", "1 alarm a", "9 over a", "20 back"}, ""},
		{"the newest words are told", []string{"0 gone", "1 down a", "9 refusing a", "20 back"}, "32 alarmrefusing a"},
		{"notices are told later too", []string{"0 gone", "1 notice a", "3 back"}, "4 notice a"},
		{"an alarm that stays on is told again", []string{"0 alarm a", "650 over a"}, "0 alarm a, 300 alarm a, 600 alarm a, 650 over a"},
		{"after an hour it gives up", []string{"0 gone", "1 alarm a", "2 notice b", "150 alarm c", "200 back"}, "213 alarm c"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := DefaultConfig()
			c.Repeat = 5 * time.Minute
			c.GiveUp = 2 * time.Minute
			seconds := 290
			if strings.Contains(tt.name, "stays on") {
				seconds = 700
			}
			if got := talk(t, c, seconds, tt.script...); got != tt.want {
				t.Errorf("told  %q\nwanted %q", got, tt.want)
			}
		})
	}
}

func TestManyOfOneKindBecomeOneMessage(t *testing.T) {
	var script []string
	for i := range 500 {
		script = append(script, fmt.Sprintf("0 alarm s%d", i))
	}
	script = append(script, "0 notice x", "1 alarm y")
	if got, want := talk(t, DefaultConfig(), 60, script...), "0 alarm ×500, 0 notice x, 1 alarm y"; got != want {
		t.Errorf("told %q, wanted %q", got, want)
	}
}

func TestABoxIsBounded(t *testing.T) {
	c := DefaultConfig()
	b := newBox(&c)
	for i := range maxWaiting + 5 {
		say(b, "alarm", fmt.Sprint(i), epoch.Add(time.Duration(i)))
		say(b, "notice", fmt.Sprint(i), epoch)
	}
	if len(b.waiting) != maxWaiting || len(b.notices) != maxWaiting || b.lost != 10 {
		t.Errorf("%d alarms and %d notices wait, %d were lost", len(b.waiting), len(b.notices), b.lost)
	}
	if _, ok := b.waiting[subject{"k", "0"}]; ok {
		t.Error("the oldest was kept")
	}
}
