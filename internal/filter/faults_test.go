package filter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"understudy/internal/mta"
)

// serve answers each connection with what talk does, and closes it.
func serve(t *testing.T, talk func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); talk(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// says reads what is sent until it ends or pauses, then answers.
func says(answer string) func(net.Conn) {
	return func(c net.Conn) {
		hear(c)
		_, _ = io.WriteString(c, answer)
		hear(c) // closing with something unread would reset the connection
	}
}

func hear(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, _ = io.Copy(io.Discard, c)
}

func httpOK(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// TestAnAnswerThatIsNoneIsAFailure goes through what can arrive in place of an answer.
func TestAnAnswerThatIsNoneIsAFailure(t *testing.T) {
	huge := strings.Repeat("x", 2<<20)
	tests := []struct {
		kind, name, answer, want string
	}{
		{Rspamd, "nothing", "", "EOF"},
		{Rspamd, "no HTTP", "hello\r\n", "malformed HTTP"},
		{Rspamd, "half an answer", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"action\":", "unexpected EOF"},
		{Rspamd, "wrong JSON", httpOK(`{"action": "reject"`), "no JSON"},
		{Rspamd, "JSON of another kind", httpOK(`["reject"]`), "no JSON"},
		{Rspamd, "no action", httpOK(`{"score": 3}`), "no action"},
		{Rspamd, "an error", httpOK(`{"error": "no\nmemory"}`), "an error: no memory"},
		{Rspamd, "another status", "HTTP/1.1 403 No\r\nContent-Length: 12\r\n\r\nunauthorized", "403: unauthorized"},
		{Rspamd, "a redirect", "HTTP/1.1 302 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "302"},
		{Rspamd, "far too much", httpOK(huge), "more than 1048576 octets"},
		{Rspamd, "an endless header", "HTTP/1.1 200 OK\r\nX: " + huge, "exceeded"},
		{Spamd, "nothing", "", "unexpected EOF"},
		{Spamd, "not spamd", "220 mx1 ESMTP\r\n", "not spamd's: 220 mx1 ESMTP"},
		{Spamd, "half an answer", "SPAMD/1.1 0 EX_OK\r\nSpam: Tr", "unexpected EOF"},
		{Spamd, "no verdict", "SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\n\r\n", "whether it is spam"},
		{Spamd, "an odd verdict", "SPAMD/1.1 0 EX_OK\r\nSpam: Maybe ; 3 / 5\r\n\r\n", "no verdict: Maybe"},
		{Spamd, "no number", "SPAMD/1.1 0 EX_OK\r\nSpam: True ; NaN / 5\r\n\r\n", "no verdict"},
		{Spamd, "an error", "SPAMD/1.0 76 Bad header line: (Content-Length mismatch)\r\n", "76 Bad header line"},
		{Spamd, "an endless line", "SPAMD/1.1 0 " + huge, "too long"},
		{Spamd, "endless fields", "SPAMD/1.1 0 EX_OK\r\n" + strings.Repeat("X: y\r\n", 100), "too many fields"},
		{Clamd, "nothing", "", "unexpected EOF"},
		{Clamd, "half an answer", "stream: O", "unexpected EOF"},
		{Clamd, "an error", "stream: Can't allocate memory ERROR\x00", "Can't allocate memory ERROR"},
		{Clamd, "another word", "stream: OKAY\x00", "OKAY"},
		{Clamd, "far too much", huge, "more than 4096 octets"},
		{Milter, "nothing", "", "EOF"},
		{Milter, "not a milter", "220 mx1 ESMTP\r\n", "exceeds"},
		{Milter, "an empty packet", "\x00\x00\x00\x00", "zero-length"},
		{Milter, "an unknown answer", "\x00\x00\x00\x0dO\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01?", "unexpected code"},
		{Milter, "the version of another world", "\x00\x00\x00\x0dO\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", "unsupported milter version"},
	}
	for _, tt := range tests {
		t.Run(tt.kind+": "+tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSet(t, Config{Name: "f", Kind: tt.kind, Address: serve(t, says(tt.answer)), Timeout: 5 * time.Second})
			found := s.Judge(t.Context(), envelope(), content(plainMail), mta.Auth{})
			if got, want := brief(found), "filter:f-down defer 3.0 the message can't be checked now, try again later"; got != want {
				t.Fatalf("%q, want %q", got, want)
			}
			if !strings.Contains(found[0].Detail, tt.want) || len(found[0].Detail) > maxDetail {
				t.Errorf("detail %q, want %q in it", found[0].Detail, tt.want)
			}
			if st := s.Status()[0]; st.Failures != 1 || st.State != Up || st.LastError != found[0].Detail {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// TestAFilterThatStallsCostsItsTimeLimit: it neither reads nor answers, or stops in the middle.
func TestAFilterThatStallsCostsItsTimeLimit(t *testing.T) {
	big := content(plainMail + strings.Repeat("0123456789\r\n", 1<<20)) // more than sockets buffer
	for _, kind := range []string{Rspamd, Milter, Spamd, Clamd} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			over := make(chan struct{})
			addr := serve(t, func(c net.Conn) { <-over })
			t.Cleanup(func() { close(over) }) // runs before that of serve
			s := newSet(t, Config{Name: "f", Kind: kind, Address: addr, Timeout: 200 * time.Millisecond, MaxSize: 1 << 30})
			start := time.Now()
			found := s.Judge(t.Context(), envelope(), big, mta.Auth{})
			if got := brief(found); !strings.HasPrefix(got, "filter:f-down defer") {
				t.Errorf("%q", got)
			}
			if took := time.Since(start); took < 200*time.Millisecond || took > 5*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

// TestWhoHangsUpEndsTheQuestion and is no failure of the filter.
func TestWhoHangsUpEndsTheQuestion(t *testing.T) {
	for _, kind := range []string{Rspamd, Milter, Spamd, Clamd} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{}, 10)
			over := make(chan struct{})
			addr := serve(t, func(net.Conn) { asked <- struct{}{}; <-over })
			t.Cleanup(func() { close(over) })
			s := newSet(t, Config{Name: "f", Kind: kind, Address: addr})
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-asked; cancel() }()
			if got := brief(s.Judge(ctx, envelope(), content(plainMail), mta.Auth{})); !strings.HasPrefix(got, "filter:f-down defer") {
				t.Errorf("%q", got)
			}
			if st := s.Status()[0]; st.Failures != 0 || st.LastError != "" || st.Busy != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// TestContentThatCantBeReadIsNotTheFiltersFault in the middle, and at the beginning.
func TestContentThatCantBeReadIsNotTheFiltersFault(t *testing.T) {
	fails := mta.Content{Size: 1 << 20, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(plainMail), errReader{})), nil
	}}
	absent := mta.Content{Size: 10, Open: func() (io.ReadCloser, error) { return nil, os.ErrNotExist }}
	addrs := map[string]string{Milter: milterAt(t, &script{}, 0)}
	for kind, answer := range map[string]string{Rspamd: httpOK(`{"action":"no action"}`), Spamd: "SPAMD/1.1 0 EX_OK\r\nSpam: False ; 0 / 5\r\n\r\n", Clamd: "stream: OK\x00"} {
		addrs[kind] = serve(t, says(answer))
	}
	for kind, addr := range addrs {
		for name, c := range map[string]mta.Content{"fails": fails, "absent": absent} {
			t.Run(kind+" "+name, func(t *testing.T) {
				s := newSet(t, Config{Name: "f", Kind: kind, Address: addr, MaxSize: 2 << 20})
				if got := brief(s.Judge(t.Context(), envelope(), c, mta.Auth{})); !strings.HasPrefix(got, "filter:f-down defer") {
					t.Errorf("%q", got)
				}
				if st := s.Status()[0]; st.Failures != 0 {
					t.Errorf("status %+v", st)
				}
			})
		}
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("input/output error") }

// TestRspamdIsToldWhoAndAnswersInTheTable goes through what a scripted rspamd can say.
func TestRspamdIsToldWhoAndAnswersInTheTable(t *testing.T) {
	var answer atomic.Value
	heads := make(chan http.Header, 1)
	addr := serve(t, func(c net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		heads <- req.Header
		_, _ = io.WriteString(c, httpOK(answer.Load().(string)))
	})
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSet(t, Config{Kind: Rspamd, Address: "http://" + addr + "/", PasswordFile: file})
	tests := []struct{ answer, want, detail string }{
		{`{"action":"no action","score":-3}`, "", ""},
		{`{"action":"reject","score":17.25,"required_score":15,"symbols":{"A":{"score":1},"B b":{"score":-9},"ZERO":{"score":0}}}`,
			"rspamd:reject reject  the message was found to be spam", "score 17.25 of 15 B-b(-9) A(1)"},
		{`{"action":"reject","messages":{"smtp_message":"go away\r\n250 OK"}}`, "rspamd:reject reject  go away 250 OK", "score 0 of 0"},
		{`{"action":"reject","messages":[]}`, "rspamd:reject reject  the message was found to be spam", "score 0 of 0"},
		{`{"action":"soft reject","messages":{"smtp_message":"later"}}`, "rspamd:soft-reject defer  later", "score 0 of 0"},
		{`{"action":"greylist"}`, "rspamd:greylist accept  the message is to be greylisted", "score 0 of 0"},
		{`{"action":"add header","messages":{"smtp_message":"not said"}}`, "rspamd:add-header mark  the message looks like spam", "score 0 of 0"},
		{`{"action":"quarantine"}`, "rspamd:quarantine mark  the message looks like spam", "score 0 of 0"},
		{`{"action":"discard"}`, "rspamd:discard quarantine  the message is kept from its recipients", "score 0 of 0"},
		{`{"action":"of my \u0000 own"}`, "rspamd:of-my---own mark  the message looks like spam", "score 0 of 0"},
	}
	for _, tt := range tests {
		answer.Store(tt.answer)
		env := envelope()
		env.Peer.Helo = "evil\r\nUser: boss"
		found := s.Judge(t.Context(), env, content(plainMail), mta.Auth{})
		if got := brief(found); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.answer, got, tt.want)
		}
		if len(found) > 0 && found[0].Detail != tt.detail {
			t.Errorf("%s: detail %q, want %q", tt.answer, found[0].Detail, tt.detail)
		}
		h := <-heads
		want := map[string]string{"Ip": "198.51.100.7", "Helo": "evil??User: boss", "Hostname": "mail.example.net", "From": "<bob@example.net>",
			"Rcpt": "<u@example.org>", "Queue-Id": env.ID.String(), "Mta-Name": "mx2.example.org", "User": "", "Password": "s3cret",
			"Tls-Cipher": "TLS_AES_128_GCM_SHA256", "Tls-Version": "TLS 1.3"}
		for k, v := range want {
			if h.Get(k) != v {
				t.Errorf("%s: %q, want %q", k, h.Get(k), v)
			}
		}
	}
}

// TestTheCircuitOpensAndAlarms: three failures, then nobody is asked, and the operator knows.
func TestTheCircuitOpensAndAlarms(t *testing.T) {
	var fine atomic.Bool
	var asked atomic.Int32
	addr := serve(t, func(c net.Conn) {
		asked.Add(1)
		if fine.Load() { // also a PING: of its answer only the status counts
			says("SPAMD/1.1 0 EX_OK\r\nSpam: False ; 0 / 5\r\n\r\n")(c)
		}
	})
	var events []mta.Event
	reg := prometheus.NewPedanticRegistry()
	s, err := New([]Config{{Name: "sa", Kind: Spamd, Address: addr, OnFailure: AcceptAndMark}}, Deps{
		Hostname: "mx2.example.org", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Metrics: reg, Events: func(e mta.Event) { events = append(events, e) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if got := brief(s.Judge(t.Context(), envelope(), content(plainMail), mta.Auth{})); !strings.HasPrefix(got, "filter:sa-down mark") {
			t.Fatalf("%q", got)
		}
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("it was asked %d times, want 3", n)
	}
	if len(events) != 1 || events[0].Kind != mta.EventFilterDown || events[0].Level != mta.Alarm || events[0].Subject != "sa" {
		t.Errorf("events %+v", events)
	}
	if st := s.Status()[0]; st.State != Down || st.Since.IsZero() {
		t.Errorf("status %+v", st)
	}
	if up := testutil.ToFloat64(s.metrics.up.WithLabelValues("sa")); up != 0 {
		t.Errorf("up is %v", up)
	}
	fine.Store(true)
	if errs := s.Check(t.Context()); errs["sa"] != nil { // so it is asked again at once
		t.Error(errs)
	}
	if got := brief(s.Judge(t.Context(), envelope(), content(plainMail), mta.Auth{})); got != "" {
		t.Errorf("%q", got)
	}
	if st := s.Status()[0]; st.State != Up || len(events) != 2 || events[1].Level != mta.Over {
		t.Errorf("status %+v, events %+v", st, events)
	}
	if _, err := testutil.GatherAndLint(reg); err != nil {
		t.Error(err)
	}
}

// TestOnlySoManyAreAskedAtOnce: who finds no connection in time is deferred, and the filter is not blamed.
func TestOnlySoManyAreAskedAtOnce(t *testing.T) {
	over := make(chan struct{})
	var now, most atomic.Int32
	addr := serve(t, func(c net.Conn) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		select {
		case <-over:
			says("SPAMD/1.1 0 EX_OK\r\nSpam: False ; 0 / 5\r\n\r\n")(c)
		case <-time.After(10 * time.Second):
		}
	})
	s := newSet(t, Config{Name: "sa", Kind: Spamd, Address: addr, MaxConnections: 2, Timeout: 5 * time.Second})
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if found := s.Judge(t.Context(), envelope(), content(plainMail), mta.Auth{}); len(found) > 0 {
				t.Errorf("%+v", found)
			}
		})
	}
	for s.Status()[0].Busy < 2 {
		time.Sleep(time.Millisecond) // real sockets
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if found := s.Judge(ctx, envelope(), content(plainMail), mta.Auth{}); len(found) != 1 || !strings.Contains(found[0].Detail, "no free connection") {
		t.Errorf("%+v", found)
	}
	close(over)
	wg.Wait()
	if most.Load() > 2 {
		t.Errorf("%d connections at once", most.Load())
	}
	if st := s.Status()[0]; st.Failures != 0 || st.Judged != 6 || st.Busy != 0 {
		t.Errorf("status %+v", st)
	}
}

func TestALargeMessageIsNotShown(t *testing.T) {
	s := newSet(t, Config{Kind: Spamd, Address: "127.0.0.1:1"}, Config{Kind: Clamd, Address: "127.0.0.1:1", MaxSize: 1000})
	big := content(plainMail + strings.Repeat("0123456789\r\n", 50000))
	want := "filter:spamd-skipped accept  not scanned, the message is too large; filter:clamd-skipped mark  not scanned, the message is too large"
	if got := brief(s.Judge(t.Context(), envelope(), big, mta.Auth{})); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestReloadKeepsWhatIsKnown(t *testing.T) {
	var events []mta.Event
	a, b := Config{Name: "a", Kind: Clamd, Address: "127.0.0.1:1"}, Config{Name: "b", Kind: Clamd, Address: "127.0.0.1:1"}
	s, err := New([]Config{a, b}, Deps{Events: func(e mta.Event) { events = append(events, e) }})
	if err != nil {
		t.Fatal(err)
	}
	for range opensAfter {
		s.judge(t.Context(), s.filters[0], &message{env: envelope(), content: content(plainMail)})
		s.judge(t.Context(), s.filters[1], &message{env: envelope(), content: content(plainMail)})
	}
	a.Timeout = time.Minute // what it meant before
	if err := s.Reload([]Config{{Name: "new", Kind: Milter, Address: "unix:/run/x"}, a}); err != nil {
		t.Fatal(err)
	}
	st := s.Status()
	if len(st) != 2 || st[0].State != Up || st[1].Name != "a" || st[1].State != Down {
		t.Errorf("%+v", st)
	}
	if last := events[len(events)-1]; last.Subject != "b" || last.Level != mta.Over {
		t.Errorf("the alarm of a filter that is gone goes on: %+v", events)
	}
	if err := s.Reload([]Config{{Kind: "pigeon"}}); err == nil || len(s.Names()) != 2 {
		t.Errorf("a faulty list was taken: %v", err)
	}
}

func TestWithoutFiltersNothingIsFound(t *testing.T) {
	if found := newSet(t).Judge(t.Context(), envelope(), content(plainMail), mta.Auth{}); found != nil {
		t.Errorf("%+v", found)
	}
}
