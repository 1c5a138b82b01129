package alert

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/mta"
)

// post is what a receiver got.
type post struct {
	at     time.Time
	header http.Header
	body   string
}

// receiver is a RoundTripper that answers status, for bubbles.
type receiver struct {
	status func(n int) int // 0: the connection fails
	posts  []post
}

func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	r.posts = append(r.posts, post{time.Now(), req.Header, string(b)})
	status := r.status(len(r.posts))
	if status == 0 {
		return nil, errors.New("connection refused")
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Body: io.NopCloser(strings.NewReader("said"))}, nil
}

func quiet(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func begin(t *testing.T, a *Alerter) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func TestAWebhookThatFailsIsToldLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{status: func(n int) int {
			return []int{0, 500, 302, 404, 200}[min(n, 5)-1]
		}}
		cfg := DefaultConfig()
		cfg.Webhooks = []Webhook{{URL: "https://hooks.test/secret"}}
		a, err := New(cfg, "mx2.example.org", quiet(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		a.client.Transport = r
		begin(t, a)
		start := time.Now()
		a.Raise(mta.Event{Kind: mta.EventPrimaryAway, Subject: "mx1:25", Level: mta.Alarm, At: start, Text: "mx1 is down."})
		time.Sleep(time.Minute)
		synctest.Wait()
		var after []string
		for _, p := range r.posts {
			after = append(after, p.at.Sub(start).Round(time.Second).String())
		}
		if got, want := strings.Join(after, " "), "0s 1s 3s 7s 15s"; got != want {
			t.Errorf("posts after %s, want %s", got, want)
		}
		if len(a.Active()) != 1 {
			t.Error("the alarm is not on")
		}
		a.Raise(mta.Event{Kind: mta.EventPrimaryAway, Subject: "mx1:25", Level: mta.Over, At: time.Now(), Text: "mx1 is up."})
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(r.posts); n != 6 || !strings.Contains(r.posts[5].body, `"level":"over"`) || len(a.Active()) != 0 {
			t.Errorf("%d posts, the last %s", n, r.posts[n-1].body)
		}
	})
}

func TestReloadTellsTheNewWebhooksWhatIsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{status: func(int) int { return 204 }}
		a, err := New(DefaultConfig(), "mx2.example.org", quiet(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		a.client.Transport = r
		begin(t, a)
		a.Raise(mta.Event{Kind: mta.EventSpoolFull, Level: mta.Alarm, At: time.Now(), Text: "The spool is 80 % full."})
		time.Sleep(time.Minute)
		cfg := DefaultConfig()
		cfg.Webhooks = []Webhook{{URL: "https://hooks.test/"}, {URL: "https://two.test/", Kinds: []string{mta.EventDrained}}}
		if err := a.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(r.posts) != 1 {
			t.Errorf("%d posts, want 1", len(r.posts))
		}
		cfg.Webhooks[0].Format = "pigeon"
		if err := a.Reload(cfg); err == nil {
			t.Error("a faulty config was taken")
		}
	})
}

// TestFormats posts each shape to a real server.
func TestFormats(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	e := mta.Event{Kind: mta.EventPrimaryAway, Subject: "mx1.example.org:25", Level: mta.Alarm, At: at,
		Text: "mx1 is down (at <banner>: \"no\n answer\").", Details: map[string]string{"state": "down"}}
	over := e
	over.Level = mta.Over
	tests := []struct {
		name   string
		hook   Webhook
		event  mta.Event
		want   []string // in the body
		header map[string]string
	}{
		{"json", Webhook{}, e, []string{`"host":"mx2.example.org"`, `"kind":"primary_away"`, `"events":[{`}, map[string]string{"Content-Type": "application/json"}},
		{"ntfy", Webhook{Format: "ntfy"}, e, []string{"mx1 is down"},
			map[string]string{"Title": "mx2.example.org: primary away", "Priority": "5", "Tags": "rotating_light"}},
		{"slack", Webhook{Format: "slack"}, over, []string{`{"text":":white_check_mark: *mx2.example.org: primary away is over*\nmx1 is down (at \u0026lt;banner\u0026gt;: \"no`}, nil},
		{"alertmanager", Webhook{Format: "alertmanager"}, e, []string{`"alertname":"understudy_primary_away"`, `"startsAt":"2026-03-01T12:00:00Z"`}, nil},
		{"alertmanager, over", Webhook{Format: "alertmanager"}, over, []string{`"endsAt":"2026-03-01T12:00:00Z"`}, nil},
		{"a template, headers and a token", Webhook{
			Template: `{"msg": {{json .Text}}, "up": {{eq .Level.String "over"}}}`, ContentType: "application/x-test",
			Headers: map[string]string{"X-Title": "{{.Title}}: {{.Text}}"}, TokenFile: token,
		}, e, []string{`"up": false`},
			map[string]string{"Content-Type": "application/x-test", "Authorization": "Bearer s3cret", "X-Title": "mx2.example.org: primary away: mx1 is down (at <banner>: \"no  answer\")."}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := make(chan post, 1)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				got <- post{header: r.Header, body: string(b)}
			}))
			t.Cleanup(srv.Close)
			cfg := DefaultConfig()
			tt.hook.URL = srv.URL + "/x"
			cfg.Webhooks = []Webhook{tt.hook}
			a, err := New(cfg, "mx2.example.org", quiet(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			begin(t, a)
			a.Raise(tt.event)
			p := <-got
			for _, w := range tt.want {
				if !strings.Contains(p.body, w) {
					t.Errorf("body %s\nlacks %s", p.body, w)
				}
			}
			for k, v := range tt.header {
				if p.header.Get(k) != v {
					t.Errorf("%s = %q, want %q", k, p.header.Get(k), v)
				}
			}
			if strings.HasPrefix(p.header.Get("Content-Type"), "application/json") && !json.Valid([]byte(p.body)) {
				t.Errorf("not JSON: %s", p.body)
			}
		})
	}
}

func TestValidateReportsAllFaults(t *testing.T) {
	c := DefaultConfig()
	c.Timeout = 0
	c.Webhooks = []Webhook{
		{URL: "ftp://x"}, {URL: "https://x", Format: "pigeon"}, {URL: "https://x", Template: "{{.Nope}}"},
		{URL: "https://x", Template: "a", Format: "json"}, {URL: "https://x", Headers: map[string]string{"a b": ""}, Kinds: []string{"x"}},
	}
	var keys []string
	for _, f := range c.Validate() {
		keys = append(keys, f.Key)
	}
	want := []string{"webhooks[0].url", "webhooks[1].format", "webhooks[2].template", "webhooks[3].template", "webhooks[4].headers", "webhooks[4].kinds[0]", "timeout"}
	if !slices.Equal(keys, want) {
		t.Errorf("faults at %q\nwant %q", keys, want)
	}
	d := DefaultConfig()
	if f := d.Validate(); len(f) > 0 {
		t.Errorf("the defaults have faults: %v", f)
	}
}
