package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"understudy/internal/alert"
	"understudy/internal/mta"
	"understudy/spool"
)

// levelsEvery is how often the queue is held against the levels that operators set.
const levelsEvery = 15 * time.Second

// watchLevels raises the alarms that are about the queue as a whole: it can't take mail, it is fuller or older than it
// should be; and those about what all of it hangs on: the disk, the DNS.
func (d *Daemon) watchLevels(ctx context.Context) error {
	tick := time.NewTicker(levelsEvery)
	defer tick.Stop()
	on := map[string]bool{}
	for {
		d.mu.Lock()
		levels := d.cfg.Alerts
		d.mu.Unlock()
		for _, e := range d.levels(ctx, levels) {
			if (e.Level == mta.Alarm) != on[e.Kind] {
				on[e.Kind] = e.Level == mta.Alarm
				d.alerts.Raise(e)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// levels asks the spool and judges.
func (d *Daemon) levels(ctx context.Context, levels alert.Config) []mta.Event {
	stats, err := d.store.Stats(ctx)
	if err != nil {
		d.opts.Log.LogAttrs(ctx, slog.LevelError, "queue levels not known", slog.Any("err", err))
		return nil
	}
	now := time.Now()
	events := judge(levels, stats, d.store.Ready(ctx), now)
	return append(events, damaged(d.store.Damages(), now), failed(d.store.LastFault(), now), silent(d.dns.Silent(), now))
}

// silent tells whether the resolvers give no answers: mail is taken all the same, but every sender waits for it, and little
// can be told of anybody.
func silent(is bool, now time.Time) mta.Event {
	if !is {
		return mta.Event{Kind: mta.EventDNSSilent, Level: mta.Over, At: now, Text: "The DNS answers."}
	}
	return mta.Event{
		Kind: mta.EventDNSSilent, Level: mta.Alarm, At: now,
		Text: "No resolver has answered for a minute: mail is taken slowly, and judged without SPF, DKIM, DMARC and DNS lists.",
	}
}

// faultFor is how long a commit that failed is an alarm: most often a new generation takes mail the moment after, and
// nothing else would tell of a disk that begins to die.
const faultFor = time.Hour

// failed tells whether the disk failed to store something.
func failed(f spool.Fault, now time.Time) mta.Event {
	if f.At.IsZero() || now.Sub(f.At) >= faultFor {
		return mta.Event{Kind: mta.EventCommitFailed, Level: mta.Over, At: now, Text: "Nothing failed to be stored in the last hour."}
	}
	return mta.Event{
		Kind: mta.EventCommitFailed, Level: mta.Alarm, At: f.At,
		Text: fmt.Sprintf("The spool's disk failed to store something, so senders were asked to try again (%v). What was answered 250 is safe. Look after the disk.", f.Err),
	}
}

// damaged tells whether anything stored is known to be damaged.
func damaged(list []spool.Damage, now time.Time) mta.Event {
	if len(list) == 0 {
		return mta.Event{Kind: mta.EventDamaged, Level: mta.Over, At: now, Text: "Nothing stored is known to be damaged any more."}
	}
	return mta.Event{
		Kind: mta.EventDamaged, Level: mta.Alarm, At: now,
		Text: fmt.Sprintf("%d messages or generations are damaged and held; understudy spool verify names them. The first: %s.", len(list), list[0].Text),
	}
}

// judge tells for each kind of alarm whether it is on.
func judge(levels alert.Config, stats []spool.DestStats, ready error, now time.Time) []mta.Event {
	full := mta.Event{Kind: mta.EventSpoolFull, Level: mta.Over, At: now, Text: "The spool takes mail and is below its level again."}
	old := mta.Event{Kind: mta.EventOldest, Level: mta.Over, At: now, Text: "No message waits longer than it should any more."}
	var bytes int64
	var oldest spool.DestStats
	for _, st := range stats {
		bytes += st.Bytes
		// A domain whose mail is all held waits for an operator, who has seen it.
		if st.Messages > st.Held && (oldest.Oldest.IsZero() || st.Oldest.Before(oldest.Oldest)) {
			oldest = st
		}
	}
	switch {
	case ready != nil:
		full.Level, full.Text = mta.Alarm, fmt.Sprintf("New mail is refused for the time being: %v.", ready)
	case levels.SpoolAbove > 0 && bytes > int64(levels.SpoolAbove):
		full.Level, full.Text = mta.Alarm, fmt.Sprintf("The spool holds %d MiB, more than the level of %s.", bytes>>20, levels.SpoolAbove)
	}
	if age := now.Sub(oldest.Oldest); levels.OldestAbove > 0 && !oldest.Oldest.IsZero() && age > levels.OldestAbove {
		old.Level = mta.Alarm
		old.Text = fmt.Sprintf("Mail for %s has been waiting for %s.", oldest.Dest, age.Round(time.Minute))
	}
	return []mta.Event{full, old}
}
