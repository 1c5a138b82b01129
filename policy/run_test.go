package policy

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"understudy/internal/mta"
)

// heard are the events of a policy.
type heard struct {
	mu     sync.Mutex // guards events
	events []string
}

func (h *heard) event(e mta.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, fmt.Sprintf("%s %s %s", e.Kind, e.Subject, e.Level))
}

func (h *heard) want(t *testing.T, want ...string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.events, want) {
		t.Errorf("events are %q, want %q", h.events, want)
	}
}

func TestAWeekOfASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "list")
		put := func(text string) {
			t.Helper()
			write(t, file+".new", text)
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
		}
		put(staff(20))
		cfg := DefaultConfig()
		cfg.StateDir = filepath.Join(dir, "state")
		s := DefaultSource()
		s.File = file
		cfg.Sources = map[string]Source{"staff": s}
		domains := map[string]Domain{"example.org": {Sources: []string{"staff"}}}
		told := &heard{}
		reg := prometheus.NewRegistry()
		p, err := New(cfg, domains, Deps{Log: slog.New(slog.DiscardHandler), Events: told.event, Metrics: reg})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()

		put(staff(21))
		time.Sleep(16 * time.Minute)
		wants(t, p, map[string]string{"u20@example.org": "taken", "u21@example.org": "550 5.1.1"})
		told.want(t)

		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(23 * time.Hour)
		wants(t, p, map[string]string{"u20@example.org": "taken", "u21@example.org": "550 5.1.1"})
		told.want(t)
		time.Sleep(2 * time.Hour)
		wants(t, p, map[string]string{"u20@example.org": "taken", "u21@example.org": "450 4.1.1"})
		told.want(t, "list_stale staff alarm")

		put(staff(5))
		time.Sleep(16 * time.Minute)
		told.want(t, "list_stale staff alarm", "list_stale staff over", "list_shrunk staff alarm")
		wants(t, p, map[string]string{"u20@example.org": "taken", "u21@example.org": "450 4.1.1"})
		time.Sleep(3 * 24 * time.Hour)
		if err := p.Confirm(t.Context(), "staff", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		wants(t, p, map[string]string{"u4@example.org": "taken", "u20@example.org": "550 5.1.1"})
		told.want(t, "list_stale staff alarm", "list_stale staff over", "list_shrunk staff alarm", "list_shrunk staff over")

		s.File += ".csv" // the list moves, and is not there yet
		moved := cfg
		moved.Sources = map[string]Source{"staff": s}
		if err := p.Reload(t.Context(), moved, domains); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		wants(t, p, map[string]string{"u4@example.org": "taken", "u20@example.org": "550 5.1.1"})
		if st := p.Sources()[0]; st.Failures == 0 || !strings.Contains(st.Err, "list.csv: no such file") || st.Recipients != 5 {
			t.Errorf("the source stands at %+v", st)
		}
		expectMetrics(t, reg)
	})
}

func expectMetrics(t *testing.T, reg *prometheus.Registry) {
	t.Helper()
	want := `
# HELP understudy_policy_source_fresh Whether a source may say that a recipient does not exist.
# TYPE understudy_policy_source_fresh gauge
understudy_policy_source_fresh{source="staff"} 1
# HELP understudy_policy_source_recipients Recipients that a source lists.
# TYPE understudy_policy_source_recipients gauge
understudy_policy_source_recipients{source="staff"} 5
# HELP understudy_policy_recipients_total Recipients that were decided about, by what decided and how.
# TYPE understudy_policy_recipients_total counter
understudy_policy_recipients_total{source="accept_all",verdict="accept"} 0
understudy_policy_recipients_total{source="accept_all",verdict="defer"} 0
understudy_policy_recipients_total{source="accept_all",verdict="reject"} 0
understudy_policy_recipients_total{source="always_taken",verdict="accept"} 0
understudy_policy_recipients_total{source="always_taken",verdict="defer"} 0
understudy_policy_recipients_total{source="always_taken",verdict="reject"} 0
understudy_policy_recipients_total{source="learned",verdict="accept"} 0
understudy_policy_recipients_total{source="learned",verdict="defer"} 0
understudy_policy_recipients_total{source="learned",verdict="reject"} 0
understudy_policy_recipients_total{source="recipients",verdict="accept"} 0
understudy_policy_recipients_total{source="recipients",verdict="defer"} 0
understudy_policy_recipients_total{source="recipients",verdict="reject"} 0
understudy_policy_recipients_total{source="relay",verdict="accept"} 0
understudy_policy_recipients_total{source="relay",verdict="defer"} 0
understudy_policy_recipients_total{source="relay",verdict="reject"} 0
understudy_policy_recipients_total{source="staff",verdict="accept"} 6
understudy_policy_recipients_total{source="staff",verdict="defer"} 0
understudy_policy_recipients_total{source="staff",verdict="reject"} 4
understudy_policy_recipients_total{source="unknown",verdict="accept"} 0
understudy_policy_recipients_total{source="unknown",verdict="defer"} 2
understudy_policy_recipients_total{source="unknown",verdict="reject"} 0
`
	err := testutil.GatherAndCompare(reg, strings.NewReader(want), "understudy_policy_source_fresh", "understudy_policy_source_recipients", "understudy_policy_recipients_total")
	if err != nil {
		t.Error(err)
	}
}

func TestALookThatAReloadOvertookChangesNothing(t *testing.T) {
	w := newWeb(t)
	w.says(text(staff(3)))
	p := sourced(t, urlSource(w.URL))
	reached, goOn := make(chan struct{}), make(chan struct{})
	w.says(func(rw http.ResponseWriter, r *http.Request) {
		close(reached)
		<-goOn
		text(staff(9))(rw, r)
	})
	looked := make(chan error, 1)
	go func() { looked <- p.Refresh(t.Context(), "s") }()
	<-reached
	cfg := p.cfg
	s := cfg.Sources["s"]
	s.Complete = false
	cfg.Sources = map[string]Source{"s": s}
	if err := p.Reload(t.Context(), cfg, p.domains); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	if err := <-looked; err != nil {
		t.Error(err)
	}
	wants(t, p, map[string]string{"u2@example.org": "taken", "u8@example.org": "450 4.1.1"})
}
