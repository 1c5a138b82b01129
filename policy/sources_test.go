package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
)

// web is a server whose answer is set by the test.
type web struct {
	*httptest.Server
	mu     sync.Mutex // guards what follows
	answer http.HandlerFunc
	asked  []http.Header
}

func newWeb(t *testing.T) *web {
	w := &web{}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asked = append(w.asked, r.Header)
		w.answer(rw, r)
	}))
	w.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	t.Cleanup(w.Close)
	return w
}

func (w *web) says(f http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = f
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s) }
}

// raw answers with these very octets and closes.
func raw(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		fmt.Fprint(c, s)
	}
}

func urlSource(url string) Source {
	s := DefaultSource()
	s.URL, s.Timeout = url, 2*time.Second
	return s
}

func staff(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "u%d@example.org\n", i)
	}
	return b.String()
}

func TestATransferThatMayNotBeWholeIsNotBelieved(t *testing.T) {
	digest := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
	}
	bad := map[string]http.HandlerFunc{
		"an error":                    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503); fmt.Fprint(w, staff(9)) },
		"a page of HTML":              text("<html><body>Please log in</body></html>\n"),
		"nothing":                     text(""),
		"nobody of our domains":       text("a@elsewhere.example\n"),
		"less than it said":           raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + staff(9)),
		"less than it has":            raw("HTTP/1.1 200 OK\r\nContent-Length: 130\r\n\r\n" + staff(9)),
		"no length":                   raw("HTTP/1.1 200 OK\r\n\r\n" + staff(9)),
		"no length, in HTTP/1.0":      raw("HTTP/1.0 200 OK\r\n\r\n" + staff(9)),
		"chunks without an end":       raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nu0@example.org\r\n\r\n"),
		"a last line without its end": text(staff(9) + "u9@example.o"),
		"another digest": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Repr-Digest", digest("x"))
			fmt.Fprint(w, staff(9))
		},
		"unchanged, though we had no tag": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) },
		"too much":                        text(strings.Repeat("# "+strings.Repeat("x", 98)+"\n", 1000) + staff(9)),
		"silence":                         func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"a way in circles":                func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/again", http.StatusFound) },
		"an encoding": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			fmt.Fprint(w, staff(9))
		},
		"a line that is no address": text("u0@example.org\nu1\n"),
	}
	for name, answer := range bad {
		t.Run(name, func(t *testing.T) {
			w := newWeb(t)
			w.says(text("old@example.org\n"))
			s := urlSource(w.URL)
			s.Timeout, s.MaxSize = 300*time.Millisecond, 50<<10
			p := sourced(t, s)
			w.says(answer)
			if err := p.Refresh(t.Context(), "s"); err == nil {
				t.Error("it was believed")
			}
			wants(t, p, map[string]string{"old@example.org": "taken", "u0@example.org": "550 5.1.1"})
		})
	}
	for name, answer := range map[string]http.HandlerFunc{
		"a length": text(staff(9)),
		"chunks": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, staff(3))
			w.(http.Flusher).Flush()
			fmt.Fprint(w, staff(9))
		},
		"its digest": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Repr-Digest", "md5=:x:, "+digest(staff(9)))
			fmt.Fprint(w, staff(9))
		},
	} {
		t.Run("but with "+name, func(t *testing.T) {
			w := newWeb(t)
			w.says(answer)
			wants(t, sourced(t, urlSource(w.URL)), map[string]string{"u8@example.org": "taken", "u9@example.org": "550 5.1.1"})
		})
	}
}

func TestWhatHasNotChangedIsNotTransferredAgain(t *testing.T) {
	w := newWeb(t)
	full := 0
	w.says(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			rw.WriteHeader(http.StatusNotModified)
			return
		}
		full++
		fmt.Fprint(rw, staff(5))
	})
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, "swordfish\n")
	s := urlSource(w.URL)
	s.TokenFile = token
	p := sourced(t, s)
	if err := p.Refresh(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	again := loaded(t, p.cfg, p.domains, quiet.Log)
	if err := again.Refresh(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if full != 1 || len(w.asked) != 3 {
		t.Errorf("%d of %d transfers were full, want 1 of 3", full, len(w.asked))
	}
	if got := w.asked[2].Get("Authorization"); got != "Bearer swordfish" {
		t.Errorf("authorization is %q", got)
	}
	// A domain that joins must not be left without its addresses because "nothing has changed".
	domains := map[string]Domain{"example.org": {Sources: []string{"s"}}, "example.com": {Sources: []string{"s"}}}
	if err := again.Reload(t.Context(), again.cfg, domains); err != nil {
		t.Fatal(err)
	}
	wants(t, again, map[string]string{"a@example.com": "450 4.1.1", "u1@example.org": "taken", "x@example.org": "550 5.1.1"})
	if err := again.Refresh(t.Context(), "s"); err != nil || full != 2 {
		t.Errorf("%d full transfers, want 2 (%v)", full, err)
	}
}

func TestASuddenLossWaitsForAnOperator(t *testing.T) {
	w := newWeb(t)
	both := func(org, net int) http.HandlerFunc {
		return text(staff(org) + strings.ReplaceAll(staff(net), "example.org", "example.net"))
	}
	w.says(both(100, 100))
	p := sourced(t, urlSource(w.URL))
	var events []mta.Event
	p.deps.Events = func(e mta.Event) { events = append(events, e) }
	refresh := func() {
		t.Helper()
		if err := p.Refresh(t.Context(), "s"); err != nil {
			t.Fatal(err)
		}
		p.raise(time.Now())
	}
	w.says(both(85, 100))
	refresh()
	wants(t, p, map[string]string{"u84@example.org": "taken", "u85@example.org": "550 5.1.1"})

	w.says(both(60, 99))
	refresh()
	refresh()
	wants(t, p, map[string]string{
		"u84@example.org": "taken", "u85@example.org": "450 4.1.1", // held: nobody is refused for good
		"u98@example.net": "taken", "u99@example.net": "550 5.1.1", // the other domain goes on
	})
	if len(events) != 1 || events[0].Kind != mta.EventListShrunk || events[0].Level != mta.Alarm || events[0].Details["example.org"] != "60 of 85 left" {
		t.Errorf("events: %+v", events)
	}
	again := loaded(t, p.cfg, p.domains, quiet.Log) // what is held is not on disk
	wants(t, again, map[string]string{"u84@example.org": "taken", "u99@example.net": "550 5.1.1"})

	if err := p.Confirm(t.Context(), "s", "example.net"); err == nil {
		t.Error("nothing was confirmed, without an error")
	}
	if err := p.Confirm(t.Context(), "s", "example.org"); err != nil {
		t.Fatal(err)
	}
	p.raise(time.Now())
	wants(t, p, map[string]string{"u59@example.org": "taken", "u60@example.org": "550 5.1.1", "u98@example.net": "taken"})
	if len(events) != 2 || events[1].Level != mta.Over {
		t.Errorf("events: %+v", events)
	}
	again = loaded(t, p.cfg, p.domains, quiet.Log)
	wants(t, again, map[string]string{"u60@example.org": "550 5.1.1"})
}

func TestWhatIsASuddenLoss(t *testing.T) {
	tests := []struct {
		had, has, percent int
		held              bool
	}{
		{100, 80, 20, false}, {100, 79, 20, true}, {100, 101, 20, false}, {0, 0, 20, false}, {0, 5, 20, false}, {3, 1, 20, false},
		{4, 1, 20, true}, {1, 0, 20, true}, {1, 0, 100, true}, {1000, 1, 100, false}, {1000, 997, 0, true}, {1000, 998, 0, false},
	}
	for _, tt := range tests {
		make := func(n int) *content {
			l := newList("x", []string{"example.org", "example.net"})
			l.add("example.net", "someone")
			for i := range n {
				l.add("example.org", fmt.Sprint(i))
			}
			c, err := newContent(l, tag{}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		if got := shrunk(make(tt.had), make(tt.has), tt.percent); (len(got) > 0) != tt.held {
			t.Errorf("%d of %d left at %d %%: held is %v", tt.has, tt.had, tt.percent, got)
		}
	}
}

func TestACommandIsBelievedOnlyIfItEndsWell(t *testing.T) {
	tests := map[string]struct {
		script, want, err string
	}{
		"good":                       {"echo a@example.org", "taken", ""},
		"fails at the end":           {"echo a@example.org; echo oops >&2; exit 3", "450", `sh: exit status 3: "oops"`},
		"is killed":                  {"echo a@example.org; kill -9 $$", "450", "sh: signal: killed"},
		"stops in the middle":        {"printf a@example.org", "450", "sh: does not end with a newline, so it may have been cut off"},
		"says something else":        {"echo a@example.org; echo oops", "450", `sh:2: path "oops": no domain`},
		"hangs":                      {"echo a@example.org; sleep 60", "450", "sh: took longer than 500ms"},
		"leaves a child that hangs":  {"echo a@example.org; sleep 60 & exit 0", "450", "sh: took longer than 500ms"},
		"never ends":                 {"while echo a@example.org; do :; done", "450", "sh: is larger than max_size"},
		"says nothing":               {"true", "450", "sh: does not end with a newline, so it may have been cut off"},
		"complains, and is good yet": {"echo hm >&2; echo a@example.org", "taken", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := DefaultSource()
			s.Command, s.Timeout, s.MaxSize = []string{"sh", "-c", tt.script}, 500*time.Millisecond, 64<<10
			p := sourced(t, s)
			wants(t, p, map[string]string{"a@example.org": tt.want})
			if got := p.Sources()[0].Err; got != tt.err {
				t.Errorf("got  %s\nwant %s", got, tt.err)
			}
		})
	}
}

func TestAFileOfAProgramIsReadWhenItChanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "list.csv")
	write(t, file, "Name,E-Mail\nAlice,alice@example.org\n")
	s := DefaultSource()
	s.File, s.Format, s.Column = file, CSV, "e-mail"
	p := sourced(t, s)
	wants(t, p, map[string]string{"alice@example.org": "taken", "bob@example.org": "550 5.1.1"})
	replace := func(text string) {
		t.Helper()
		write(t, file+".new", text)
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	replace("Name,E-Mail\nAlice,alice@example.org\nBob,bob@example.org\n")
	if err := p.Refresh(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	wants(t, p, map[string]string{"bob@example.org": "taken"})
	replace("Name,E-Mail\nAlice,alice@example.org\nBob,bob@exam")
	if err := p.Refresh(t.Context(), "s"); err == nil {
		t.Error("a line that was cut off was read")
	}
	replace("Name,E-Mail\nAlice")
	if err := p.Refresh(t.Context(), "s"); err == nil {
		t.Error("a row that was cut off was read")
	}
	wants(t, p, map[string]string{"alice@example.org": "taken"})
}

func TestTheLastGoodCopyIsWholeOrNotUsed(t *testing.T) {
	w := newWeb(t)
	w.says(text("a@example.org\n@example.net\n"))
	p := sourced(t, urlSource(w.URL))
	w.Close()
	file := copyFile(p.cfg.StateDir, "s")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, loaded(t, p.cfg, p.domains, quiet.Log), map[string]string{"a@example.org": "taken", "b@example.org": "550 5.1.1", "b@example.net": "taken"})
	for i := range len(good) {
		if _, err := readCopy(bytes.NewReader(good[:i]), "s"); err == nil {
			t.Fatalf("its first %d octets were believed", i)
		}
		flipped := bytes.Clone(good)
		flipped[i] ^= 1
		if _, err := readCopy(bytes.NewReader(flipped), "s"); err == nil && i < len(good)-1 {
			t.Fatalf("octet %d was changed, and it was believed", i)
		}
	}
	write(t, file, string(good[:len(good)-9]))
	var logged bytes.Buffer
	again := loaded(t, p.cfg, p.domains, slog.New(slog.NewTextHandler(&logged, nil)))
	wants(t, again, map[string]string{"a@example.org": "450 4.1.1", "postmaster@example.org": "taken"})
	if !strings.Contains(logged.String(), "last good copy of s: is damaged") {
		t.Errorf("the log says %s", logged.String())
	}
}

func TestAStaleSourceNoLongerRefusesAndRaisesAnAlarm(t *testing.T) {
	w := newWeb(t)
	w.says(text("a@example.org\n"))
	s := urlSource(w.URL)
	p := sourced(t, s)
	w.Close()
	src := p.sources["s"]
	old := time.Now().Add(-s.StaleAfter - time.Minute)
	src.checked.Store(old.UnixNano())
	if err := touchCopy(p.cfg.StateDir, "s", old); err != nil {
		t.Fatal(err)
	}
	again := loaded(t, p.cfg, p.domains, quiet.Log) // the age outlives the process
	for _, p := range []*Policy{p, again} {
		wants(t, p, map[string]string{"a@example.org": "taken", "b@example.org": "450 4.1.1"})
		var events []mta.Event
		p.deps.Events = func(e mta.Event) { events = append(events, e) }
		p.raise(time.Now())
		p.raise(time.Now())
		if len(events) != 1 || events[0].Kind != mta.EventListStale || events[0].Level != mta.Alarm || events[0].Subject != "s" {
			t.Errorf("events: %+v", events)
		}
	}
	var over []mta.Event
	p.deps.Events = func(e mta.Event) { over = append(over, e) }
	if err := p.Reload(t.Context(), DefaultConfig(), map[string]Domain{"example.org": {AcceptAll: true}}); err != nil {
		t.Fatal(err)
	}
	p.raise(time.Now())
	if len(over) != 1 || over[0].Level != mta.Over {
		t.Errorf("events: %+v", over)
	}
}

func TestASourceThatWasNeverReadIsAnAlarmAndDefers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	p := sourced(t, urlSource("http://"+l.Addr().String()))
	wants(t, p, map[string]string{"a@example.org": "450 4.1.1", "postmaster@example.org": "taken"})
	var events []mta.Event
	p.deps.Events = func(e mta.Event) { events = append(events, e) }
	p.raise(time.Now())
	if len(events) != 1 || events[0].Kind != mta.EventListStale {
		t.Errorf("events: %+v", events)
	}
}

func TestCheckFindsWhatIsWrongOnThisHostAndAsksNobody(t *testing.T) {
	dir := t.TempDir()
	missing, patterns := filepath.Join(dir, "missing"), filepath.Join(dir, "patterns")
	write(t, patterns, "good@example\\.org\nbad(\n")
	def := DefaultSource()
	url, re, cmd, db := urlSource("http://192.0.2.1/"), def, def, def
	url.TokenFile, url.CAFile = missing, patterns
	url.URL = "https://192.0.2.1/"
	re.File, re.Format = patterns, Patterns
	cmd.Command = []string{"no-such-program-here"}
	db.SQL.Driver, db.SQL.DSNFile, db.SQL.Query = "postgres", patterns, "SELECT 1"
	cfg := DefaultConfig()
	cfg.StateDir = filepath.Join(dir, "state")
	cfg.Sources = map[string]Source{"web": url, "re": re, "cmd": cmd, "db": db, "unused": cmd}
	p, err := New(cfg, map[string]Domain{"example.org": {Recipients: missing}, "example.net": {Sources: []string{"web", "re", "cmd", "db"}}}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Check(t.Context())
	for _, want := range []string{
		missing + ": no such file or directory", "policy.sources.web: token_file: " + missing, "policy.sources.web: ca_file: " + patterns + ": holds no certificate",
		patterns + ":2: error parsing regexp", "policy.sources.cmd: command:", "policy.sources.db: sql.dsn_file:",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not said:\n%v", want, err)
		}
	}
	if _, err := os.Stat(cfg.StateDir); err == nil {
		t.Error("Check wrote something")
	}
}

func TestAListOverTLSIsBelievedOnlyOfWhomWeTrustAndNeverGoesOnInClear(t *testing.T) {
	plain := newWeb(t)
	plain.says(text(staff(9)))
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "/list", http.StatusFound)
		case "/clear":
			http.Redirect(w, r, plain.URL, http.StatusFound)
		default:
			text(staff(9))(w, r)
		}
	}))
	t.Cleanup(secure.Close)
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	for path, want := range map[string]string{"/list": "taken", "/moved": "taken", "/clear": "450"} {
		s := urlSource(secure.URL + path)
		s.CAFile = ca
		wants(t, sourced(t, s), map[string]string{"u1@example.org": want})
	}
	wants(t, sourced(t, urlSource(secure.URL+"/list")), map[string]string{"u1@example.org": "450"})
}
