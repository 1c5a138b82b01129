package filter

import (
	"bytes"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-milter"

	"understudy/internal/mta"
)

// script is a milter that answers as it is told, and remembers what it was shown.
type script struct {
	answers map[string]milter.Response // by step; "rcpt USER" for one recipient
	wishes  func(*milter.Modifier)

	mu    sync.Mutex // guards what follows
	shown []string
	mail  bytes.Buffer // header and body
}

func (s *script) step(name, said string, m *milter.Modifier) (milter.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	macros := ""
	for _, k := range []string{"j", "i", "{client_addr}", "{client_name}", "{tls_version}", "{cipher}", "{cipher_bits}", "{mail_addr}", "{rcpt_addr}", "{rcpt_host}"} {
		if v := m.Macros[k]; v != "" {
			macros += " " + k + "=" + v
		}
	}
	s.shown = append(s.shown, name+" "+said+" |"+macros)
	if r := s.answers[name]; r != nil {
		return r, nil
	}
	return milter.RespContinue, nil
}

func (s *script) Connect(host, family string, port uint16, addr net.IP, m *milter.Modifier) (milter.Response, error) {
	return s.step("connect", host+" "+family+" "+addr.String(), m)
}
func (s *script) Helo(name string, m *milter.Modifier) (milter.Response, error) {
	return s.step("helo", name, m)
}
func (s *script) MailFrom(from string, m *milter.Modifier) (milter.Response, error) {
	return s.step("mail", from, m)
}
func (s *script) RcptTo(to string, m *milter.Modifier) (milter.Response, error) {
	r, err := s.step("rcpt", to, m)
	if own := s.answers["rcpt "+to]; own != nil {
		r = own
	}
	return r, err
}
func (s *script) Header(name, value string, _ *milter.Modifier) (milter.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mail.WriteString(name + ":" + value + "\n")
	return milter.RespContinue, nil
}
func (s *script) Headers(_ textproto.MIMEHeader, m *milter.Modifier) (milter.Response, error) {
	return s.step("eoh", "", m)
}
func (s *script) BodyChunk(chunk []byte, m *milter.Modifier) (milter.Response, error) {
	s.mu.Lock()
	s.mail.Write(chunk)
	s.mu.Unlock()
	return s.step("body", "", m)
}
func (s *script) Body(m *milter.Modifier) (milter.Response, error) {
	if s.wishes != nil {
		s.wishes(m)
	}
	r, err := s.step("eom", "", m)
	if s.answers["eom"] == nil {
		r = milter.RespAccept
	}
	return r, err
}
func (s *script) Abort(*milter.Modifier) error { return nil }

// milterAt serves the script by another implementation of the protocol, of version 2.
func milterAt(t *testing.T, s *script, protocol milter.OptProtocol) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &milter.Server{NewMilter: func() milter.Milter { return s }, Actions: milter.OptAddHeader | milter.OptQuarantine, Protocol: protocol}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func two() *mta.Envelope {
	env := envelope()
	env.Rcpts = append(env.Rcpts, mta.Recipient{Addr: mta.Path{Local: "v", Domain: "example.org"}, Dest: "example.org"})
	return env
}

func TestWhatAMilterAnswersBecomesAFinding(t *testing.T) {
	reply := func(s string) milter.Response { return milter.NewResponseStr('y', s) }
	const quarantined = "milter:m quarantine  the message is kept from its recipients"
	tests := []struct {
		name    string
		answers map[string]milter.Response
		wishes  func(*milter.Modifier)
		want    string
	}{
		{"nothing", nil, nil, ""},
		{"connect: accept", map[string]milter.Response{"connect": milter.RespAccept, "eom": milter.RespReject}, nil, ""},
		{"connect: reject", map[string]milter.Response{"connect": milter.RespReject}, nil, "milter:m reject  the message is refused by policy"},
		{"helo: tempfail", map[string]milter.Response{"helo": milter.RespTempFail}, nil, "milter:m defer  the message can't be taken now, try again later"},
		{"mail: reply", map[string]milter.Response{"mail": reply("550 5.7.26 not you")}, nil, "milter:m reject 7.26 not you"},
		{"mail: temporary reply", map[string]milter.Response{"mail": reply("451 4.7.1 later")}, nil, "milter:m defer 7.1 later"},
		{"a reply that is no refusal", map[string]milter.Response{"mail": reply("250 2.0.0 fine")}, nil, "milter:m defer  fine"},
		{"a reply that would be two", map[string]milter.Response{"mail": reply("550 5.7.1 no\r\n250 OK\x7f\u00e9")}, nil, "milter:m reject 7.1 no 250 OK??"},
		{"rcpt: all refused", map[string]milter.Response{"rcpt": reply("550 5.1.1 unknown")}, nil, "milter:m reject 1.1 unknown"},
		{"rcpt: all refused, one for now", map[string]milter.Response{"rcpt": reply("550 5.1.1 unknown"), "rcpt v@example.org": milter.RespTempFail}, nil,
			"milter:m defer  the message can't be taken now, try again later"},
		{"rcpt: one refused", map[string]milter.Response{"rcpt v@example.org": milter.RespReject}, nil, "milter:m mark  the message looks like spam"},
		{"rcpt: one refused, then the message", map[string]milter.Response{"rcpt v@example.org": milter.RespReject, "eom": milter.RespReject}, nil,
			"milter:m reject  the message is refused by policy"},
		{"rcpt: accept is for the message", map[string]milter.Response{"rcpt": milter.RespAccept, "eom": milter.RespReject}, nil, ""},
		{"eoh: discard", map[string]milter.Response{"eoh": milter.RespDiscard}, nil, quarantined},
		{"body: reject", map[string]milter.Response{"body": milter.RespReject}, nil, "milter:m reject  the message is refused by policy"},
		{"eom: discard", map[string]milter.Response{"eom": milter.RespDiscard}, nil, quarantined},
		{"eom: quarantine", nil, func(m *milter.Modifier) { _ = m.Quarantine("odd\r\n") }, quarantined},
		{"eom: quarantine, then reject", map[string]milter.Response{"eom": milter.RespReject}, func(m *milter.Modifier) { _ = m.Quarantine("odd") },
			"milter:m reject  the message is refused by policy"},
		{"eom: X-Spam-Flag", nil, func(m *milter.Modifier) { _ = m.AddHeader("X-Spam-Flag", "YES") }, "milter:m mark  the message looks like spam"},
		{"eom: subject", nil, func(m *milter.Modifier) { _ = m.ChangeHeader(1, "Subject", "[SPAM] x") }, "milter:m mark  the message looks like spam"},
		{"eom: all else is not done", nil, func(m *milter.Modifier) {
			_ = m.AddHeader("X-Spam-Flag", "NO")
			_ = m.InsertHeader(0, "Authentication-Results", "x")
			_ = m.AddRecipient("evil@example.com")
			_ = m.DeleteRecipient("u@example.org")
			_ = m.ChangeFrom("<other@example.com>")
			_ = m.ReplaceBody([]byte("another"))
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSet(t, Config{Name: "m", Kind: Milter, Address: milterAt(t, &script{answers: tt.answers, wishes: tt.wishes}, 0)})
			if got := brief(s.Judge(t.Context(), two(), content(plainMail), mta.Auth{})); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestAMilterSeesTheWholeTransaction(t *testing.T) {
	m := &script{}
	s := newSet(t, Config{Kind: Milter, Address: milterAt(t, m, 0)})
	env := two()
	auth := mta.Auth{SPF: mta.AuthResult{Result: "pass", Domain: "example.net"}, DKIM: []mta.AuthResult{{Result: "fail", Domain: "x\r\ny.test", Selector: "s1"}}}
	body := strings.Repeat("0123456789\r\n", 20000)
	mail := "From: a\r\nSubject: one\r\n\ttwo\r\nEmpty:\r\n\r\n" + body
	if found := s.Judge(t.Context(), env, content(mail), auth); len(found) > 0 {
		t.Fatal(found)
	}
	id := " i=" + env.ID.String()
	want := []string{
		"connect mail.example.net tcp4 198.51.100.7 | j=mx2.example.org {client_addr}=198.51.100.7 {client_name}=mail.example.net",
		"helo mail.example.net | {tls_version}=TLSv1.3 {cipher}=TLS_AES_128_GCM_SHA256 {cipher_bits}=128",
		"mail bob@example.net |" + id + " {mail_addr}=bob@example.net",
		"rcpt u@example.org |" + id + " {rcpt_addr}=u@example.org {rcpt_host}=example.org",
		"rcpt v@example.org |" + id + " {rcpt_addr}=v@example.org {rcpt_host}=example.org",
		"eoh  |" + id, "body  |" + id, "body  |" + id, "body  |" + id, "body  |" + id, "eom  |" + id,
	}
	if got := strings.Join(m.shown, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("it was shown\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	header := "Authentication-Results:mx2.example.org;\n\tspf=pass smtp.mailfrom=example.net;\n\tdkim=fail header.d=x--y.test header.s=s1\n"
	if got := m.mail.String(); got != header+"From:a\nSubject:one\n\ttwo\nEmpty:\n"+body {
		t.Errorf("it got %d octets beginning %.200q", len(got), got)
	}
}

func TestStepsThatAMilterDoesNotWantAreLeftOut(t *testing.T) {
	m := &script{}
	no := milter.OptNoConnect | milter.OptNoHelo | milter.OptNoMailFrom | milter.OptNoRcptTo | milter.OptNoBody | milter.OptNoHeaders | milter.OptNoEOH
	s := newSet(t, Config{Kind: Milter, Address: milterAt(t, m, no)})
	if found := s.Judge(t.Context(), envelope(), content(plainMail), mta.Auth{}); len(found) > 0 {
		t.Fatal(found)
	}
	if len(m.shown) != 1 || !strings.HasPrefix(m.shown[0], "eom") || m.mail.Len() > 0 {
		t.Errorf("it was shown %q", m.shown)
	}
}

func TestMiltersAreAskedInTheirOrder(t *testing.T) {
	var mu sync.Mutex
	var order []string
	var cfgs []Config
	for _, name := range []string{"c", "a", "b"} {
		s := &script{wishes: func(*milter.Modifier) { mu.Lock(); order = append(order, name); mu.Unlock() }, answers: map[string]milter.Response{"eom": milter.RespReject}}
		cfgs = append(cfgs, Config{Name: name, Kind: Milter, Address: milterAt(t, s, 0)})
	}
	found := newSet(t, cfgs...).Judge(t.Context(), envelope(), content(plainMail), mta.Auth{})
	if got := strings.Join(order, ""); got != "cab" || len(found) != 3 || found[1].Name != "milter:a" {
		t.Errorf("order %s, findings %v", got, found)
	}
}
