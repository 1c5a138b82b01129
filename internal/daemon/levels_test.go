package daemon

import (
	"errors"
	"testing"
	"time"

	"understudy/internal/alert"
	"understudy/internal/mta"
	"understudy/spool"
)

func TestAlarmsFollowTheLevels(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	levels := alert.Config{SpoolAbove: mta.MiB, OldestAbove: time.Hour}
	row := func(messages, held, bytes int64, age time.Duration) []spool.DestStats {
		return []spool.DestStats{{Dest: "example.org", Messages: messages, Held: held, Bytes: bytes, Oldest: now.Add(-age)}}
	}
	for _, tt := range []struct {
		name      string
		levels    alert.Config
		stats     []spool.DestStats
		ready     error
		full, old mta.Level
	}{
		{"an empty queue", levels, nil, nil, mta.Over, mta.Over},
		{"below both", levels, row(1, 0, 1<<20, time.Hour), nil, mta.Over, mta.Over},
		{"too much", levels, row(1, 0, 1<<20+1, time.Minute), nil, mta.Alarm, mta.Over},
		{"too old", levels, row(1, 0, 1, time.Hour+1), nil, mta.Over, mta.Alarm},
		{"old, but all of it held", levels, row(2, 2, 1, time.Hour+1), nil, mta.Over, mta.Over},
		{"no levels", alert.Config{}, row(1, 0, 1<<30, 1000*time.Hour), nil, mta.Over, mta.Over},
		{"not ready", alert.Config{}, nil, errors.New("the disk is full"), mta.Alarm, mta.Over},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := judge(tt.levels, tt.stats, tt.ready, now)
			if got[0].Level != tt.full || got[1].Level != tt.old {
				t.Errorf("got %v and %v, want %v and %v", got[0].Level, got[1].Level, tt.full, tt.old)
			}
		})
	}
}

func TestACommitThatFailedIsAnAlarmForAnHour(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name  string
		fault spool.Fault
		want  mta.Level
	}{
		{"none", spool.Fault{}, mta.Over},
		{"just now", spool.Fault{At: now, Err: errors.New("input/output error")}, mta.Alarm},
		{"an hour ago", spool.Fault{At: now.Add(-time.Hour), Err: errors.New("input/output error")}, mta.Over},
	} {
		if got := failed(tt.fault, now); got.Level != tt.want || got.Kind != mta.EventCommitFailed {
			t.Errorf("%s: got %+v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestASilentDNSIsAnAlarm(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for is, want := range map[bool]mta.Level{true: mta.Alarm, false: mta.Over} {
		if got := silent(is, now); got.Level != want || got.Kind != mta.EventDNSSilent {
			t.Errorf("silent %v: %+v", is, got)
		}
	}
}
