package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"understudy/forwarder"
	"understudy/healthprobe"
	"understudy/internal/mta"
	"understudy/spool"
)

// health is a prober that believes what the test says.
type health struct {
	up        bool
	hinted    []string
	overrides []healthprobe.Override
}

func (h *health) Status() []healthprobe.PrimaryStatus {
	return []healthprobe.PrimaryStatus{{Primary: "mx1.example.org:25", Domains: 1}}
}

func (h *health) Route(context.Context, string) (mta.Route, error) {
	return mta.NewRoute([][]mta.Primary{{{Host: "mx1.example.org", Port: 25}}}), nil
}

func (h *health) Open(string) bool                    { return h.up }
func (h *health) Domains() []healthprobe.DomainStatus { return nil }

func (h *health) Override(_ context.Context, o healthprobe.Override) error {
	if o.Subject == "" {
		return errors.New("of whom?")
	}
	h.overrides = append(h.overrides, o)
	return nil
}

func (h *health) EndOverride(context.Context, healthprobe.OverrideKind, string) (bool, error) {
	had := len(h.overrides) > 0
	h.overrides = nil
	return had, nil
}

func (h *health) Overrides() []healthprobe.Override { return h.overrides }

func (h *health) Outages(q healthprobe.OutageQuery) []healthprobe.Outage {
	return []healthprobe.Outage{{Primary: "mx1.example.org:25", Begin: q.Since}}
}

func (h *health) Hint(d string) { h.hinted = append(h.hinted, d) }

// flusher notes what it was told.
type flusher struct{ flushed []string }

func (f *flusher) Flush(_ context.Context, dest string, id mta.ID) {
	text := dest
	if !id.IsZero() {
		text += " " + id.String()
	}
	f.flushed = append(f.flushed, text)
}

func (f *flusher) Resume(primary string) bool { return primary == "mx1.example.org:25" }

func (f *flusher) Primaries() []forwarder.PrimaryStatus {
	return []forwarder.PrimaryStatus{{Primary: "mx1.example.org:25", Sessions: 3, Until: time.Now().Add(time.Hour)}}
}

// unready is a spool that can't take mail.
type unready struct{ Spool }

func (unready) Ready(context.Context) error { return errors.New("the disk is full") }

type fixture struct {
	srv    *Server
	queue  *spool.Memory
	health *health
	fwd    *flusher
	client *Client
	cfg    Config
}

// serve runs a server with two waiting messages for example.org and one for example.com.
func serve(t *testing.T, set func(*Config, *Deps)) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{queue: spool.NewMemory(), health: &health{}, fwd: &flusher{}}
	for i, to := range []string{"bob@example.org", "carol@example.org", "bob@example.com"} {
		path, err := mta.ParsePath(to)
		if err != nil {
			t.Fatal(err)
		}
		env := &mta.Envelope{
			ID: mta.NewID(time.UnixMilli(int64(1700000000000 + i))), Received: time.Now(),
			From:  mta.Path{Local: "alice", Domain: "example.net"},
			Peer:  mta.Peer{Addr: netip.MustParseAddrPort("192.0.2.1:2000"), Helo: "client", Proto: "ESMTP"},
			Rcpts: []mta.Recipient{{Addr: path, Dest: path.Domain}},
		}
		if err := f.queue.Put(t.Context(), env, strings.NewReader("Subject: x\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
	}
	f.cfg = Config{Socket: filepath.Join(dir, "admin.sock")}
	deps := Deps{
		Hostname: "mx2.example.org", Version: "test", Domains: func() []string { return []string{"example.org", "quiet.example"} },
		Spool: f.queue, Health: f.health, Forwarder: f.fwd, Gatherer: prometheus.NewRegistry(),
		Reload: func(context.Context) (Reloaded, error) { return Reloaded{NeedRestart: []string{"spool.dir"}}, nil },
		Alarms: func() []mta.Event { return []mta.Event{{Kind: mta.EventBreaker}} },
		Log:    slog.New(slog.DiscardHandler),
	}
	if set != nil {
		set(&f.cfg, &deps)
	}
	f.srv = New(f.cfg, deps)
	if err := f.srv.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	f.client = NewClient(f.cfg.Socket, "")
	return f
}

func TestStatusShowsDomainsWithAndWithoutMail(t *testing.T) {
	f := serve(t, nil)
	st, err := f.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range st.Domains {
		got = append(got, fmt.Sprintf("%s %d %v", d.Domain, d.Messages, d.Configured))
	}
	want := "example.com 1 false, example.org 2 true, quiet.example 0 true"
	if strings.Join(got, ", ") != want {
		t.Errorf("domains: %v, want %s", got, want)
	}
	if !st.Ready || st.Hostname != "mx2.example.org" || len(st.Primaries) != 1 || st.Primaries[0].Sessions != 3 || st.Primaries[0].PausedUntil.IsZero() {
		t.Errorf("status: %+v", st)
	}
}

func TestTheQueueIsReadInPages(t *testing.T) {
	f := serve(t, nil)
	var got []string
	q := QueueQuery{Limit: 2}
	for {
		page, err := f.client.Queue(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range page.Messages {
			got = append(got, m.Rcpts[0].Addr.String()+" "+m.State+" "+m.Client)
		}
		if page.Next == "" {
			break
		}
		q.After = page.Next
	}
	want := "bob@example.org waiting 192.0.2.1, carol@example.org waiting 192.0.2.1, bob@example.com waiting 192.0.2.1"
	if strings.Join(got, ", ") != want {
		t.Errorf("queue: %v", got)
	}
	page, err := f.client.Queue(t.Context(), QueueQuery{Domain: "EXAMPLE.com."})
	if err != nil || len(page.Messages) != 1 {
		t.Errorf("one domain: %v, %v", page, err)
	}
}

func TestAFlushCoversWhatItNames(t *testing.T) {
	f := serve(t, nil)
	page, err := f.client.Queue(t.Context(), QueueQuery{Rcpt: "carol"})
	if err != nil || len(page.Messages) != 1 {
		t.Fatal(page, err)
	}
	id := page.Messages[0].ID.String()
	for _, tt := range []struct {
		name    string
		req     FlushRequest
		flushed string
		want    Flushed
	}{
		{"all", FlushRequest{}, "example.com, example.org, quiet.example", Flushed{Messages: 3}},
		{"one domain, as people write it", FlushRequest{Domain: "Example.ORG"}, "example.org", Flushed{Messages: 2}},
		{"one message", FlushRequest{ID: id}, "example.org " + id, Flushed{Messages: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.fwd.flushed, f.health.hinted = nil, nil
			done, err := f.client.Flush(t.Context(), tt.req)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(f.fwd.flushed, ", "); got != tt.flushed {
				t.Errorf("flushed %q, want %q", got, tt.flushed)
			}
			if len(f.health.hinted) != len(f.fwd.flushed) {
				t.Errorf("probed for %v", f.health.hinted)
			}
			if done.Messages != tt.want.Messages || strings.Join(done.Closed, " ") != "mx1.example.org:25" {
				t.Errorf("answer: %+v", done)
			}
		})
	}
}

func TestBadRequestsSayWhatIsWrong(t *testing.T) {
	f := serve(t, nil)
	for _, tt := range []struct {
		method, path, body string
		code               int
		text               string
	}{
		{"GET", "/v1/queue?limit=0", "", 400, "limit"},
		{"GET", "/v1/queue?limit=1001", "", 400, "1000"},
		{"GET", "/v1/queue?held=perhaps", "", 400, "held"},
		{"GET", "/v1/queue?domain=a..b", "", 400, "label"},
		{"GET", "/v1/queue/xyz", "", 400, "queue id"},
		{"GET", "/v1/queue/" + mta.NewID(time.Now()).String(), "", 404, "not in the queue"},
		{"POST", "/v1/flush", `{"domian": "example.org"}`, 400, "domian"},
		{"POST", "/v1/flush", `{"domain": "nowhere.example"}`, 404, "not configured"},
		{"POST", "/v1/flush", `{"id": "1"}`, 400, "queue id"},
		{"GET", "/v1/flush", "", 405, ""},
		{"GET", "/v2/status", "", 404, ""},
	} {
		t.Run(tt.method+" "+tt.path+" "+tt.body, func(t *testing.T) {
			code, body := f.raw(t, tt.method, tt.path, tt.body)
			if code != tt.code || !strings.Contains(body, tt.text) {
				t.Errorf("%d %s, want %d with %q", code, body, tt.code, tt.text)
			}
		})
	}
}

// raw does one request over the socket.
func (f *fixture) raw(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, f.client.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return roundTrip(t, f.client.http, req)
}

func roundTrip(t *testing.T, c *http.Client, req *http.Request) (int, string) {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestReadinessFollowsTheSpool(t *testing.T) {
	f := serve(t, nil)
	if code, body := f.raw(t, "GET", "/readyz", ""); code != 200 {
		t.Errorf("ready: %d %s", code, body)
	}
	f = serve(t, func(_ *Config, d *Deps) { d.Spool = unready{d.Spool} })
	if code, body := f.raw(t, "GET", "/readyz", ""); code != 503 || !strings.Contains(body, "disk is full") {
		t.Errorf("not ready: %d %s", code, body)
	}
	if code, _ := f.raw(t, "GET", "/livez", ""); code != 200 {
		t.Errorf("alive all the same: %d", code)
	}
	if st, err := f.client.Status(t.Context()); err != nil || st.Ready || st.Reason != "the disk is full" {
		t.Errorf("status: %+v, %v", st, err)
	}
}

func TestARefusedReloadSaysWhy(t *testing.T) {
	f := serve(t, nil)
	done, err := f.client.Reload(t.Context())
	if err != nil || len(done.NeedRestart) != 1 {
		t.Errorf("reload: %+v, %v", done, err)
	}
	f = serve(t, func(_ *Config, d *Deps) {
		d.Reload = func(context.Context) (Reloaded, error) { return Reloaded{}, errors.New("understudy.yaml:3:1: no") }
	})
	if _, err := f.client.Reload(t.Context()); err == nil || err.Error() != "understudy.yaml:3:1: no" {
		t.Errorf("refused reload: %v", err)
	}
}

func TestTheSocketIsForItsOwnerAlone(t *testing.T) {
	f := serve(t, nil)
	info, err := os.Stat(f.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %o, want 600", got)
	}
	if err := New(f.cfg, Deps{}).Listen(); err == nil || !strings.Contains(err.Error(), "another understudy") {
		t.Errorf("a second server: %v", err)
	}
}

func TestASocketThatACrashLeftIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	for range 2 {
		l, err := listenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Close() // leaves the file, as a crash would
	}
}

func TestTCPWantsTheToken(t *testing.T) {
	const token = "correct-horse-battery"
	f := serve(t, func(c *Config, _ *Deps) {
		c.Listen = "127.0.0.1:0"
		c.TokenFile = filepath.Join(filepath.Dir(c.Socket), "token")
		if err := os.WriteFile(c.TokenFile, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	url := "http://" + f.srv.Addr().String()
	for _, tt := range []struct {
		path, authorization string
		code                int
	}{
		{"/livez", "", 200},
		{"/readyz", "", 200},
		{"/metrics", "", 401},
		{"/v1/status", "", 401},
		{"/v1/status", "Bearer wrong-horse-battery", 401},
		{"/v1/status", "Basic " + token, 401},
		{"/v1/status", "Bearer " + token, 200},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", url+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", tt.authorization)
		if code, _ := roundTrip(t, http.DefaultClient, req); code != tt.code {
			t.Errorf("%s with %q: %d, want %d", tt.path, tt.authorization, code, tt.code)
		}
	}
	if _, err := NewClient(url, token).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestATokenMustBeLong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, bytes.Repeat([]byte("x"), minToken-1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadToken(file); err == nil {
		t.Error("a short token was taken")
	}
}

func TestTheClientExplainsASilentSocket(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "none.sock"), "").Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is it running") {
		t.Errorf("got %v", err)
	}
}
