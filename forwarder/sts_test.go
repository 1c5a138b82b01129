package forwarder

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/testkit"
)

// web is a domain's web server and DNS, as far as MTA-STS wants them.
type web struct {
	mu     sync.Mutex
	policy string
	kind   string
	txt    []string
	err    error
	hits   int
	sts    *STS
}

func newWeb(t *testing.T, policy string) *web {
	cert, trust := testkit.Certificate(t, "mta-sts.example.org")
	w := &web{policy: policy, kind: "text/plain; charset=utf-8", txt: []string{"v=spf1 -all", "v=STSv1; id=1;"}}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.hits++
		if r.URL.Path != "/.well-known/mta-sts.txt" {
			http.NotFound(rw, r)
			return
		}
		if w.policy == "redirect" {
			http.Redirect(rw, r, "https://mta-sts.example.org/other", http.StatusFound)
			return
		}
		rw.Header().Set("Content-Type", w.kind)
		io.WriteString(rw, w.policy)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	w.sts = &STS{TXT: w.lookup, Client: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: trust},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
		},
	}}}
	return w
}

func (w *web) lookup(_ context.Context, name string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if name != "_mta-sts.example.org" {
		return nil, errors.New("another name: " + name)
	}
	return w.txt, w.err
}

const enforced = "version: STSv1\r\nmode: enforce\r\nmx: mx1.example.org\r\nmx: *.mail.example.org\r\nmax_age: 604800\r\n"

func TestAnMTASTSPolicyIsReadAsRFC8461Says(t *testing.T) {
	now := time.Now()
	tests := []struct {
		text string
		mode string // empty: an error
		host string
		want bool
	}{
		{enforced, "enforce", "mx1.example.org", true},
		{enforced, "enforce", "a.mail.example.org", true},
		{enforced, "enforce", "a.b.mail.example.org", false},
		{enforced, "enforce", "mail.example.org", false},
		{enforced, "enforce", "mx2.example.org", false},
		{strings.ReplaceAll(enforced, "\r\n", "\n"), "enforce", "mx1.example.org", true},
		{strings.Replace(enforced, "enforce", "testing", 1), "testing", "mx1.example.org", true},
		{"version: STSv1\nmode: none\nmax_age: 1\n", "none", "mx1.example.org", false},
		{strings.Replace(enforced, "STSv1", "STSv2", 1), "", "", false},
		{strings.Replace(enforced, "max_age: 604800", "", 1), "", "", false},
		{strings.Replace(enforced, "604800", "-1", 1), "", "", false},
		{"version: STSv1\nmode: enforce\nmax_age: 1\n", "", "", false},
		{strings.Replace(enforced, "mx1.example.org", "..", 1), "", "", false},
		{"<html>", "", "", false},
		{"", "", "", false},
	}
	for _, tt := range tests {
		p, err := parseSTS(tt.text, now)
		if (err != nil) != (tt.mode == "") || err == nil && (p.Mode != tt.mode || p.names(tt.host) != tt.want) {
			t.Errorf("%q: %+v %v", tt.text, p, err)
		}
	}
	if p, err := parseSTS(strings.Replace(enforced, "604800", "9223372036854775807", 1), now); err != nil || p.Until.After(now.Add(stsMaxAge)) {
		t.Errorf("%v %v", p, err)
	}
}

// shelfKeep keeps in a map.
type shelfKeep map[string][]byte

func (k shelfKeep) Get(_ context.Context, ns, key string) ([]byte, uint64, error) {
	if b, ok := k[ns+key]; ok {
		return b, 1, nil
	}
	return nil, 0, errors.New("none")
}

func (k shelfKeep) Put(_ context.Context, ns, key string, val []byte, _ time.Duration, _ *uint64) (uint64, error) {
	k[ns+key] = val
	return 1, nil
}

func TestAPolicyOnceSeenIsKeptWhateverBecomesOfDNSAndWeb(t *testing.T) {
	w := newWeb(t, enforced)
	keep := shelfKeep{}
	w.sts.Keep = keep
	if p := w.sts.policy(t.Context(), "example.org"); !p.enforced(time.Now()) {
		t.Fatalf("%+v", p)
	}
	w.sts.policy(t.Context(), "example.org")
	if w.hits != 1 {
		t.Errorf("%d fetches", w.hits)
	}
	w.err, w.policy = errors.New("SERVFAIL"), ""
	for what, s := range map[string]*STS{"later": w.sts, "after a restart": {TXT: w.lookup, Client: w.sts.Client, Keep: keep}} {
		s.mu.Lock()
		for d, p := range s.known {
			p.asked = time.Time{}
			s.known[d] = p
		}
		s.mu.Unlock()
		if p := s.policy(t.Context(), "example.org"); !p.enforced(time.Now()) {
			t.Errorf("%s: %+v", what, p)
		}
	}
}

func TestWhatIsNoPolicyIsNone(t *testing.T) {
	for name, set := range map[string]func(*web){
		"no record":    func(w *web) { w.txt = nil },
		"two records":  func(w *web) { w.txt = append(w.txt, "v=STSv1; id=2;") },
		"redirect":     func(w *web) { w.policy = "redirect" },
		"html":         func(w *web) { w.kind = "text/html" },
		"dns trouble":  func(w *web) { w.err = errors.New("SERVFAIL") },
		"not a policy": func(w *web) { w.policy = "hello" },
	} {
		w := newWeb(t, enforced)
		set(w)
		if p := w.sts.policy(t.Context(), "example.org"); p.enforced(time.Now()) {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestMailIsSentOnlyAsTheDomainsPolicySays(t *testing.T) {
	cert, _ := testkit.Certificate(t, "127.0.0.1")
	for _, tt := range []struct {
		name, policy string
		tls          bool
		delivered    bool
	}{
		{"none", "", false, true},
		{"testing", strings.Replace(enforced, "enforce", "testing", 1), false, true},
		{"enforced, another host", enforced, true, false},
		{"enforced, in clear", strings.Replace(enforced, "mx1.example.org", "127.0.0.1", 1), false, false},
		{"enforced, no known authority", strings.Replace(enforced, "mx1.example.org", "127.0.0.1", 1), true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := started(t, func(p *testkit.Primary) {
				if tt.tls {
					p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
				}
			})
			w := newWorld(t, "example.org", tier(p))
			w.sts = newWeb(t, tt.policy).sts
			w.domains = map[string]Domain{"example.org": {TLS: "mta-sts"}}
			id := w.put("x\r\n", "a@example.org")
			w.start()
			if tt.delivered {
				w.eventually("delivery", func() bool { return w.left() == 0 })
				return
			}
			w.eventually("trouble", func() bool { return w.gates.troubles(p.Addr()) > 0 })
			if p.Accepted() > 0 || len(w.items(id)) != 1 || w.items(id)[0].Attempts != 0 {
				t.Errorf("%d deliveries, %+v", p.Accepted(), w.items(id))
			}
		})
	}
}
