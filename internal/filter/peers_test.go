package filter

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"understudy/internal/mta"
	"understudy/internal/testkit/peer"
)

// gtube is the line that rspamd and SpamAssassin take for spam, put together here so that filters don't find this file.
func gtube() string {
	return "XJS*C4JDBQADN1.NSBN3" + "*2IDNEN*GTUBE-STANDARD-" + "ANTI-UBE-TEST-EMAIL*C.34X"
}

const plainMail = "From: Bob <bob@example.net>\r\nTo: u@example.org\r\nSubject: Minutes of Tuesday\r\n" +
	"Date: Mon, 02 Mar 2026 10:00:00 +0000\r\nMessage-ID: <1@example.net>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n" +
	"Dear all,\r\n\r\nplease find below the minutes of our meeting on Tuesday.\r\n\r\nBob\r\n"

func content(s string) mta.Content {
	return mta.Content{Size: int64(len(s)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }}
}

func envelope() *mta.Envelope {
	now := time.Now()
	return &mta.Envelope{
		ID: mta.NewID(now), Received: now,
		Peer: mta.Peer{
			Addr: netip.MustParseAddrPort("198.51.100.7:4711"), Local: netip.MustParseAddrPort("192.0.2.20:25"),
			Name: "mail.example.net", Helo: "mail.example.net", Proto: "ESMTPS",
			TLS: &mta.TLS{Version: "TLS 1.3", Cipher: "TLS_AES_128_GCM_SHA256"},
		},
		From:  mta.Path{Local: "bob", Domain: "example.net"},
		Rcpts: []mta.Recipient{{Addr: mta.Path{Local: "u", Domain: "example.org"}, Dest: "example.org"}},
	}
}

func newSet(t *testing.T, cfgs ...Config) *Set {
	t.Helper()
	s, err := New(cfgs, Deps{Hostname: "mx2.example.org", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// brief writes findings as "NAME ACTION STATUS TEXT".
func brief(found []mta.Finding) string {
	var all []string
	for _, f := range found {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", f.Name, f.Action, f.Status, f.Text)))
	}
	return strings.Join(all, "; ")
}

// actionsLua makes rspamd do what a field of the message asks for.
const actionsLua = `
rspamd_config:register_symbol({ name = 'TEST_ACTION', type = 'prefilter', priority = 10, callback = function(task)
  local want = task:get_header('X-Test-Action')
  if want then task:set_pre_result(want, task:get_header('X-Test-Text')) end
  local who = task:get_header('X-Test-Who')
  if who then
    local ip, host = task:get_from_ip(), task:get_hostname() or '-'
    task:set_pre_result('soft reject', table.concat({ tostring(ip), host, task:get_helo() or '-', (task:get_from('smtp') or {{addr='-'}})[1].addr,
      tostring(#(task:get_recipients('smtp') or {})), task:get_queue_id() or '-', task:get_user() or 'nobody' }, ' '))
  end
end })
`

// TestRspamdIsAskedByHTTPAndAsMilter holds what a real rspamd says by both roads against the table in docs/filters.md.
func TestRspamdIsAskedByHTTPAndAsMilter(t *testing.T) {
	r := peer.NewRspamd(t, map[string]string{"rspamd.local.lua": actionsLua})
	r.Start()
	s := newSet(t, Config{Kind: Rspamd, Address: r.Addr}, Config{Name: "proxy", Kind: Milter, Address: r.MilterAddr})
	for name, err := range s.Check(t.Context()) {
		if err != nil {
			t.Errorf("%s does not answer a ping: %v", name, err)
		}
	}
	env := envelope()
	env.Rcpts = append(env.Rcpts, mta.Recipient{Addr: mta.Path{Local: "v", Domain: "example.org"}, Dest: "example.org"})
	who := "198.51.100.7 mail.example.net mail.example.net bob@example.net 2 " + env.ID.String() + " nobody"
	tests := []struct{ name, mail, http, milter string }{
		{"ham", plainMail, "", ""},
		{"GTUBE", plainMail + gtube() + "\r\n", "rspamd:reject reject  Gtube pattern", "milter:proxy reject 7.1 Gtube pattern"},
		{"soft reject", field("Action: soft reject", "Text: not\ttoday"), "rspamd:soft-reject defer  not today", "milter:proxy defer 7.1 not today"},
		{"greylist", field("Action: greylist"), "rspamd:greylist accept  the message is to be greylisted", ""},
		{"add header", field("Action: add header"), "rspamd:add-header mark  the message looks like spam", "milter:proxy mark  the message looks like spam"},
		{"rewrite subject", field("Action: rewrite subject"), "rspamd:rewrite-subject mark  the message looks like spam", "milter:proxy mark  the message looks like spam"},
		{"who the client was", field("Who: x"), "rspamd:soft-reject defer  " + who, "milter:proxy defer 7.1 " + who},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := brief(s.Judge(t.Context(), env, content(tt.mail), mta.Auth{}, "rspamd")); got != tt.http {
				t.Errorf("by HTTP %q, want %q", got, tt.http)
			}
			if got := brief(s.Judge(t.Context(), env, content(tt.mail), mta.Auth{}, "proxy")); got != tt.milter {
				t.Errorf("as milter %q, want %q", got, tt.milter)
			}
		})
	}
}

// field is a message with fields that actionsLua obeys.
func field(f ...string) string {
	return "X-Test-" + strings.Join(f, "\r\nX-Test-") + "\r\n" + plainMail
}

func TestRspamdAsMilterQuarantines(t *testing.T) {
	r := peer.NewRspamd(t, map[string]string{"override.d/worker-proxy.inc": "quarantine_on_reject = true;\n"})
	r.Start()
	s := newSet(t, Config{Kind: Milter, Address: r.MilterAddr})
	found := s.Judge(t.Context(), envelope(), content(plainMail+gtube()+"\r\n"), mta.Auth{})
	if got, want := brief(found), "milter:milter quarantine  the message is kept from its recipients"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestSpamdIsAsked also shows that SpamAssassin reads the Received field that we put before the message: the client's
// address is one that no mail should come from, and its HELO and reverse-path are the envelope's.
func TestSpamdIsAsked(t *testing.T) {
	p := peer.NewSpamd(t, `header TEST_RELAY X-Spam-Relays-Untrusted =~ /^\[ ip=198\.51\.100\.7 rdns=mail\.example\.net helo=mail\.example\.net by=mx2\.example\.org [^\]]*envfrom=bob\@example\.net /
score TEST_RELAY 0.1
`)
	p.Start()
	s := newSet(t, Config{Kind: Spamd, Address: p.Addr}, Config{Name: "strict", Kind: Spamd, Address: p.Addr, RejectScore: 15})
	for name, err := range s.Check(t.Context()) {
		if err != nil {
			t.Errorf("%s does not answer a ping: %v", name, err)
		}
	}
	if found := s.Judge(t.Context(), envelope(), content(plainMail), mta.Auth{}); len(found) > 0 {
		t.Errorf("a plain message: %+v", found)
	}
	found := s.Judge(t.Context(), envelope(), content(plainMail+gtube()+"\r\n"), mta.Auth{})
	if got, want := brief(found), "spamd:spam mark  the message looks like spam; spamd:spam reject  the message was found to be spam"; got != want {
		t.Fatalf("%q, want %q", got, want)
	}
	if d := found[0].Detail; !strings.Contains(d, "GTUBE") || !strings.Contains(d, "TEST_RELAY") {
		t.Errorf("detail %q, want GTUBE and TEST_RELAY in it", d)
	}
}

func TestClamdIsAsked(t *testing.T) {
	p := peer.NewClamd(t, "StreamMaxLength 1M")
	p.Start()
	s := newSet(t, Config{Name: "tcp", Kind: Clamd, Address: p.Addr}, Config{Name: "unix", Kind: Clamd, Address: "unix:" + p.Socket})
	for name, err := range s.Check(t.Context()) {
		if err != nil {
			t.Errorf("%s does not answer a ping: %v", name, err)
		}
	}
	attached := "From: a@example.net\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" +
		"--b\r\nContent-Type: application/octet-stream; name=test.com\r\nContent-Transfer-Encoding: base64\r\n" +
		"Content-Disposition: attachment; filename=test.com\r\n\r\n" + base64.StdEncoding.EncodeToString([]byte(peer.Eicar())) + "\r\n--b--\r\n"
	tests := []struct{ name, mail, want string }{
		{"clean", plainMail, ""},
		{"a signature of our own", plainMail + peer.ClamdMarker, "clamd:Understudy.Test.UNOFFICIAL reject  the message has a virus: Understudy.Test.UNOFFICIAL"},
		{"the EICAR file attached", attached, "clamd:Eicar-Test-Signature.UNOFFICIAL reject  the message has a virus: Eicar-Test-Signature.UNOFFICIAL"},
		{"larger than it takes", plainMail + strings.Repeat("many words\r\n", 4<<20/12), "filter:%s-skipped mark  not scanned, the message is too large"},
	}
	for _, tt := range tests {
		for _, name := range s.Names() {
			t.Run(tt.name+", "+name, func(t *testing.T) {
				want := strings.ReplaceAll(tt.want, "%s", name)
				if got := brief(s.Judge(t.Context(), envelope(), content(tt.mail), mta.Auth{}, name)); got != want {
					t.Errorf("%q, want %q", got, want)
				}
			})
		}
	}
	p.Stop()
	for _, name := range s.Names() {
		want := "filter:" + name + "-down defer 3.0 the message can't be checked now, try again later"
		if got := brief(s.Judge(t.Context(), envelope(), content(plainMail), mta.Auth{}, name)); got != want {
			t.Errorf("stopped, %s: %q, want %q", name, got, want)
		}
	}
}

func TestClamAVsMilterIsAsked(t *testing.T) {
	c := peer.NewClamd(t)
	c.Start()
	m := peer.NewClamAVMilter(t, c)
	m.Start()
	s := newSet(t, Config{Name: "clamav", Kind: Milter, Address: m.Addr, VirusScanner: true})
	if found := s.Judge(t.Context(), envelope(), content(plainMail), mta.Auth{}); len(found) > 0 {
		t.Errorf("a clean message: %+v", found)
	}
	want := "milter:clamav reject 7.1 found Understudy.Test.UNOFFICIAL"
	if got := brief(s.Judge(t.Context(), envelope(), content(plainMail+peer.ClamdMarker), mta.Auth{})); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	c.Stop()
	if got := brief(s.Judge(t.Context(), envelope(), content(plainMail), mta.Auth{})); !strings.Contains(got, " defer ") {
		t.Errorf("without its clamd: %q", got)
	}
}

// TestOpenDKIMVerifiesWhatWeSend shows that a milter sees header and body as they came, also by the canonicalization
// that forgives nothing.
func TestOpenDKIMVerifiesWhatWeSend(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := peer.NewOpenDKIM(t, map[string]string{"s1._domainkey.example.net": "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(pub)},
		"On-NoSignature tempfail\n")
	o.Start()
	s := newSet(t, Config{Name: "opendkim", Kind: Milter, Address: o.Addr})
	mail := strings.Replace(plainMail, "Subject: Minutes of", "Subject:   Minutes  of\r\n\t ", 1)
	for _, canon := range []dkim.Canonicalization{dkim.CanonicalizationSimple, dkim.CanonicalizationRelaxed} {
		t.Run(string(canon), func(t *testing.T) {
			var b bytes.Buffer
			err := dkim.Sign(&b, strings.NewReader(mail), &dkim.SignOptions{
				Domain: "example.net", Selector: "s1", Signer: key, HeaderCanonicalization: canon, BodyCanonicalization: canon,
				HeaderKeys: []string{"From", "To", "Subject", "Date"},
			})
			if err != nil {
				t.Fatal(err)
			}
			auth := mta.Auth{SPF: mta.AuthResult{Result: "pass", Domain: "example.net"}}
			if found := s.Judge(t.Context(), envelope(), content(b.String()), auth); len(found) > 0 {
				t.Errorf("as signed: %+v", found)
			}
			spoiled := strings.Replace(b.String(), "Dear", "Deer", 1)
			if got, want := brief(s.Judge(t.Context(), envelope(), content(spoiled), auth)), "milter:opendkim reject 7.0 bad DKIM signature data"; got != want {
				t.Errorf("spoiled: %q, want %q", got, want)
			}
		})
	}
	if got, want := brief(s.Judge(t.Context(), envelope(), content(mail), mta.Auth{})), "milter:opendkim defer 7.0 no DKIM signature data"; got != want {
		t.Errorf("without a signature: %q, want %q", got, want)
	}
}
