package filter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"understudy/internal/mta"
)

// scanner speaks one protocol. Both methods return as soon as ctx is done.
type scanner interface {
	// scan asks about a message. Any error says that there was no answer; errTooLarge and errContent are not the filter's fault.
	scan(ctx context.Context, m *message) ([]mta.Finding, error)
	// ping asks whether it is there.
	ping(ctx context.Context) error
}

// errTooLarge says that the filter itself finds the message too large to look at.
var errTooLarge = errors.New("larger than the filter takes")

// filter is one filter with its bounds.
type filter struct {
	Config // completed
	scanner
	slots chan struct{} // one for each message that it is asked about

	mu      sync.Mutex // guards what follows
	circuit circuit
	judged  uint64
}

func newFilter(c Config) (*filter, error) {
	f := &filter{Config: c.completed()}
	f.slots = make(chan struct{}, f.MaxConnections)
	var err error
	switch f.Kind {
	case Rspamd:
		f.scanner, err = newRspamd(f.Config)
	case Milter:
		f.scanner = &milterClient{name: f.Name, address: f.Address}
	case Spamd:
		f.scanner = &spamd{address: f.Address, rejectScore: f.RejectScore}
	case Clamd:
		f.scanner = &clamd{address: f.Address}
	default:
		err = fmt.Errorf("kind %q is unknown", f.Kind)
	}
	if err != nil {
		return nil, fmt.Errorf("filter %s: %w", f.Name, err)
	}
	return f, nil
}

// admit asks the circuit.
func (f *filter) admit(now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.circuit.admit(now) {
		return fmt.Errorf("not asked since %s: %s", f.circuit.since.UTC().Format(time.RFC3339), f.circuit.last)
	}
	return nil
}

// judge asks about a message within the filter's bounds.
func (s *Set) judge(ctx context.Context, f *filter, m *message) []mta.Finding {
	if f.MaxSize > 0 && m.content.Size > int64(f.MaxSize) {
		return s.counted(f, f.skipped(fmt.Sprintf("%d octets, max_size is %s", m.content.Size, f.MaxSize)))
	}
	within, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-within.Done():
		return s.counted(f, f.down(errors.New("no free connection in time")))
	}
	if err := f.admit(time.Now()); err != nil {
		return s.counted(f, f.down(err))
	}
	start := time.Now()
	found, err := f.scan(within, m)
	took := time.Since(start)
	s.metrics.seconds.WithLabelValues(f.Name).Observe(took.Seconds())
	switch {
	case err == nil:
		s.answered(f)
		return s.counted(f, found)
	case errors.Is(err, errTooLarge):
		s.answered(f)
		return s.counted(f, f.skipped(err.Error()))
	case ctx.Err() != nil || errors.Is(err, errContent): // the sender hung up, or it is our own fault
		f.abandoned()
	default:
		s.deps.Log.LogAttrs(ctx, slog.LevelWarn, "filter failed", slog.String("id", m.env.ID.String()),
			slog.String("filter", f.Name), slog.Duration("took", took), slog.String("err", line(err.Error(), maxDetail)))
		s.failed(f, err)
	}
	return s.counted(f, f.down(err))
}

func (f *filter) abandoned() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.circuit.abandoned()
}

// down is the finding that the filter gave no answer.
func (f *filter) down(err error) []mta.Finding {
	action := mta.Defer
	if f.OnFailure == AcceptAndMark {
		action = mta.Mark
	}
	return []mta.Finding{{
		Name: "filter:" + f.Name + "-down", Action: action, Status: "3.0",
		Text: "the message can't be checked now, try again later", Detail: line(err.Error(), maxDetail),
	}}
}

// skipped is the finding that the message is larger than what the filter looks at. It is taken, as mail servers do
// with the same filter: the sender could never make it smaller by trying again. What no virus scanner saw is marked.
func (f *filter) skipped(why string) []mta.Finding {
	action := mta.Accept
	if f.VirusScanner {
		action = mta.Mark
	}
	return []mta.Finding{{
		Name: "filter:" + f.Name + "-skipped", Action: action, Text: "not scanned, the message is too large", Detail: line(why, maxDetail),
	}}
}

// answered notes that the filter is there.
func (s *Set) answered(f *filter) {
	f.mu.Lock()
	f.judged++
	closed := f.circuit.answered(time.Now())
	f.mu.Unlock()
	if closed {
		s.up(f)
	}
}

// failed notes that it gave no answer.
func (s *Set) failed(f *filter, err error) {
	f.mu.Lock()
	opened := f.circuit.failed(time.Now(), line(err.Error(), maxDetail))
	f.mu.Unlock()
	if !opened {
		return
	}
	s.metrics.up.WithLabelValues(f.Name).Set(0)
	what := "Mail is deferred."
	if f.OnFailure == AcceptAndMark {
		what = "Mail is taken unseen by it, and marked."
	}
	s.deps.Log.LogAttrs(context.Background(), slog.LevelError, "filter down", slog.String("filter", f.Name), slog.String("err", line(err.Error(), maxDetail)))
	s.tell(mta.Event{
		Kind: mta.EventFilterDown, Subject: f.Name, Level: mta.Alarm, At: time.Now(),
		Text:    fmt.Sprintf("The content filter %s at %s does not answer: %s. %s", f.Name, f.Address, line(err.Error(), maxText), what),
		Details: map[string]string{"kind": f.Kind, "address": f.Address},
	})
}

func (s *Set) up(f *filter) {
	s.metrics.up.WithLabelValues(f.Name).Set(1)
	s.deps.Log.LogAttrs(context.Background(), slog.LevelInfo, "filter up", slog.String("filter", f.Name))
	s.tell(mta.Event{
		Kind: mta.EventFilterDown, Subject: f.Name, Level: mta.Over, At: time.Now(),
		Text: fmt.Sprintf("The content filter %s at %s answers again.", f.Name, f.Address),
	})
}

func (s *Set) tell(e mta.Event) {
	if s.deps.Events != nil {
		s.deps.Events(e)
	}
}

// counted counts findings by the strictest action among them.
func (s *Set) counted(f *filter, found []mta.Finding) []mta.Finding {
	worst := mta.Accept
	for i := range found {
		worst = max(worst, found[i].Action)
	}
	s.metrics.messages.WithLabelValues(f.Name, worst.String()).Inc()
	return found
}
