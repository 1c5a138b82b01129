package mailauth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"understudy/internal/dnsx"
	"understudy/internal/dnsx/dnstest"
	"understudy/internal/mta"
)

// memory is a resolver of zones without sockets.
func memory(t testing.TB, z dnstest.Zones) *dnsx.Resolver {
	t.Helper()
	cfg := dnsx.DefaultConfig()
	cfg.Resolvers, cfg.Exchange = []string{"192.0.2.53"}, dnstest.NewMemory(z).Exchange
	cfg.Timeout, cfg.Tries = 100*time.Millisecond, 1
	r, err := dnsx.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func contentOf(s string) mta.Content {
	return mta.Content{Size: int64(len(s)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil }}
}

func readAll(t testing.TB, c mta.Content) string {
	t.Helper()
	r, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil || int64(len(b)) != c.Size {
		t.Fatalf("%d octets of %d: %v", len(b), c.Size, err)
	}
	return string(b)
}

// key is a signing key and its record.
type key struct {
	signer crypto.Signer
	record string
}

func rsaKey(t testing.TB) key {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString(der)
	return key{k, `TXT "v=DKIM1; k=rsa; p=` + b64[:200] + `" "` + b64[200:] + `"`}
}

func edKey(t testing.TB) key {
	t.Helper()
	pub, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key{k, `TXT "v=DKIM1; k=ed25519; p=` + base64.StdEncoding.EncodeToString(pub) + `"`}
}

const plainMessage = "From: Bob <bob@example.net>\r\nTo: u@example.org\r\nSubject: hello\r\n world\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n" +
	"Message-ID: <1@example.net>\r\n\r\nHello,\r\n\r\nworld.\r\n"

// signed signs a message as options say.
func signed(t testing.TB, msg string, k key, o dkim.SignOptions) string {
	t.Helper()
	o.Signer = k.signer
	if o.Domain == "" {
		o.Domain = "example.net"
	}
	if o.Selector == "" {
		o.Selector = "sel"
	}
	o.HeaderCanonicalization, o.BodyCanonicalization = dkim.CanonicalizationRelaxed, dkim.CanonicalizationRelaxed
	var b bytes.Buffer
	if err := dkim.Sign(&b, strings.NewReader(msg), &o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// check is DKIM's part of Content.
func check(t testing.TB, v *Verifier, c mta.Content) []mta.AuthResult {
	t.Helper()
	auth, _, err := v.Content(t.Context(), c, mta.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	return auth.DKIM
}

func TestSignaturesAreVerified(t *testing.T) {
	k, ed := rsaKey(t), edKey(t)
	z := dnstest.Zones{
		"sel._domainkey.example.net": {k.record}, "ed._domainkey.example.net": {ed.record},
		"revoked._domainkey.example.net": {`TXT "v=DKIM1; p="`}, "down._domainkey.example.net": {"SERVFAIL"}, "example.net": {"A 192.0.2.1"},
	}
	v := verifier(t, memory(t, z))
	good := signed(t, plainMessage, k, dkim.SignOptions{})
	headerOnly := strings.TrimSuffix(signed(t, plainMessage[:strings.Index(plainMessage, "\r\n\r\n")+4], k, dkim.SignOptions{}), "\r\n")
	both := signed(t, good, ed, dkim.SignOptions{Selector: "ed"})
	tests := []struct {
		name, msg string
		want      []string // result, domain, selector
	}{
		{"unsigned", plainMessage, nil},
		{"RSA", good, []string{"pass example.net sel"}},
		{"Ed25519 and RSA", both, []string{"pass example.net ed", "pass example.net sel"}},
		{"one of two broken", strings.Replace(both, "s=ed;", "s=sel;", 1), []string{"permerror example.net sel", "pass example.net sel"}},
		{"header only, without an empty line", headerOnly, []string{"pass example.net sel"}},
		{"header only, without a last newline", strings.TrimSuffix(headerOnly, "\r\n"), []string{"pass example.net sel"}},
		{"body changed", good + "more\r\n", []string{"fail example.net sel"}},
		{"subject changed", strings.Replace(good, "hello", "hallo", 1), []string{"fail example.net sel"}},
		{"in other case and folds", strings.Replace(good, "DKIM-Signature:", "dkim-SIGNATURE\t:", 1), []string{"pass example.net sel"}},
		{"with a length", strings.Replace(good, " d=example.net;", " d=example.net; l=10;", 1), []string{"policy example.net sel"}},
		{"no key", signed(t, plainMessage, k, dkim.SignOptions{Selector: "none"}), []string{"permerror example.net none"}},
		{"key revoked", signed(t, plainMessage, k, dkim.SignOptions{Selector: "revoked"}), []string{"permerror example.net revoked"}},
		{"no answer", signed(t, plainMessage, k, dkim.SignOptions{Selector: "down"}), []string{"temperror example.net down"}},
		{"another's identity", strings.Replace(good, " d=example.net;", " d=example.net; i=@example.com;", 1), []string{"permerror example.net sel"}},
		{"no domain", "DKIM-Signature: v=1; a=rsa-sha256; s=sel\r\n" + plainMessage, []string{"permerror  sel"}},
		{"garbage", "DKIM-Signature: \x00;;;===\r\n" + plainMessage, []string{"permerror  "}},
		{"empty", "DKIM-Signature:\r\n" + plainMessage, []string{"permerror  "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := check(t, v, contentOf(tt.msg))
			if len(got) != len(tt.want) {
				t.Fatalf("got %+v, want %q", got, tt.want)
			}
			for i, r := range got {
				if s := r.Result + " " + r.Domain + " " + r.Selector; s != tt.want[i] {
					t.Errorf("got %q (%s), want %q", s, r.Reason, tt.want[i])
				}
			}
		})
	}
}

func TestOnlySoManySignaturesAreVerified(t *testing.T) {
	k := rsaKey(t)
	msg := signed(t, plainMessage, k, dkim.SignOptions{})
	field := msg[:len(msg)-len(plainMessage)]
	bomb := strings.Repeat(field, 500) + plainMessage + strings.Repeat("x\r\n", 1<<20)
	server := dnstest.NewMemory(dnstest.Zones{"sel._domainkey.example.net": {k.record}})
	cfg := dnsx.DefaultConfig()
	cfg.Resolvers, cfg.Exchange = []string{"192.0.2.53"}, server.Exchange
	r, err := dnsx.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	got := check(t, verifier(t, r), contentOf(bomb))
	if len(got) != DefaultConfig().Signatures {
		t.Errorf("%d signatures were verified", len(got))
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestASignatureOfThousandsOfNamesIsNotVerified(t *testing.T) {
	const begin, end = "DKIM-Signature: v=1; a=rsa-sha256; d=example.net; s=sel; h=from", "; bh=AAAA; b=AAAA\r\n"
	for name, msg := range map[string]string{
		"names and fields": strings.Repeat(begin+strings.Repeat(":a", 5000)+end, 5) + strings.Repeat("A: 1\r\n", 5000),
		"names and blanks": begin + strings.Repeat(":a", 5000) + end + strings.Repeat("A:"+strings.Repeat(" ", 50_000)+"x\r\n", 15),
		"one huge field":   begin + strings.Repeat(":a", 100_000) + end,
	} {
		start := time.Now()
		got := check(t, verifier(t, memory(t, dnstest.Zones{})), contentOf(msg+plainMessage))
		for _, r := range got {
			if r.Result != "neutral" || r.Domain != "example.net" {
				t.Errorf("%s: got %+v", name, r)
			}
		}
		if took := time.Since(start); len(got) == 0 || took > time.Second {
			t.Errorf("%s: %d results in %v", name, len(got), took)
		}
	}
}

// What just passes the limit must be cheap enough.
func TestTheDearestSignatureIsCheapEnough(t *testing.T) {
	k := edKey(t)
	blanks := strings.Repeat("A:"+strings.Repeat(" ", 50_000)+"x\r\n", 15)
	bound := maxWork / (len(blanks) + 2000 + 64*30)
	msg := "DKIM-Signature: v=1; a=ed25519-sha256; d=example.net; s=sel; h=from" + strings.Repeat(":b", bound-10) +
		"; bh=VDXONmWkvAiKQg0K71Oe8QjacCOEtoyCtmiR8jH6QlI=; b=AAAA\r\n" + blanks + plainMessage
	start := time.Now()
	got := check(t, verifier(t, memory(t, dnstest.Zones{"sel._domainkey.example.net": {k.record}})), contentOf(msg))
	if took := time.Since(start); len(got) != 1 || got[0].Result != "fail" || took > 10*time.Second {
		t.Errorf("%+v in %v", got, took)
	}
}

// silent never answers.
type silent struct{ Resolver }

func (silent) LookupTXT(ctx context.Context, _ string) ([]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestTheDeadlineHoldsWhoeverIsSilent(t *testing.T) {
	cfg := DefaultConfig()
	cfg.ContentTimeout = 200 * time.Millisecond
	v, err := New(cfg, silent{})
	if err != nil {
		t.Fatal(err)
	}
	msg := signed(t, plainMessage, edKey(t), dkim.SignOptions{})
	slow := mta.Content{Size: 1, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(msg), &drip{})), nil
	}}
	for name, c := range map[string]mta.Content{"the DNS": contentOf(msg), "the content": slow} {
		begin := time.Now()
		auth, findings, err := v.Content(t.Context(), c, mta.Auth{SPF: mta.AuthResult{Result: "pass", Domain: "example.net"}})
		if err != nil {
			t.Fatal(name, err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		if len(auth.DKIM) != 1 || auth.DKIM[0].Result != "temperror" || auth.DMARC.Result != "temperror" {
			t.Errorf("%s: got %+v", name, auth)
		}
		for _, f := range findings {
			if f.Action != mta.Accept {
				t.Errorf("%s: what is not known speaks against it: %+v", name, f)
			}
		}
	}
}

// drip is content that comes an octet a millisecond, for ever.
type drip struct{}

func (*drip) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	p[0] = 'x'
	return 1, nil
}

func TestABrokenReaderIsOurOwnErrorAndLeavesNothingBehind(t *testing.T) {
	k := edKey(t)
	v := verifier(t, memory(t, dnstest.Zones{"sel._domainkey.example.net": {k.record}}))
	msg := signed(t, signed(t, plainMessage, k, dkim.SignOptions{}), k, dkim.SignOptions{})
	broken := errors.New("broken")
	before := runtime.NumGoroutine()
	for range 50 {
		opened := 0
		c := mta.Content{Size: 1 << 20, Open: func() (io.ReadCloser, error) {
			if opened++; opened == 1 { // the header's scan
				return io.NopCloser(strings.NewReader(msg)), nil
			}
			return io.NopCloser(io.MultiReader(strings.NewReader(msg), iotest.ErrReader(broken))), nil
		}}
		if _, _, err := v.Content(t.Context(), c, mta.Auth{}); !errors.Is(err, broken) {
			t.Fatalf("got %v", err)
		}
	}
	for i := 0; runtime.NumGoroutine() > before+5; i++ {
		if i == 100 {
			t.Fatalf("%d goroutines are left of %d", runtime.NumGoroutine(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestTheEditLeavesSignaturesValid(t *testing.T) {
	k := rsaKey(t)
	v := verifier(t, memory(t, dnstest.Zones{"sel._domainkey.example.net": {k.record}, "_dmarc.example.net": {`TXT "v=DMARC1; p=reject"`}}))
	msg := "Authentication-Results: mx2.example.org; dkim=pass\r\nX-Spam-Flag: NO\r\n" + signed(t, plainMessage, k, dkim.SignOptions{})
	auth, _, err := v.Content(t.Context(), contentOf(msg), mta.Auth{})
	if err != nil || auth.DMARC.Result != "pass" {
		t.Fatal(auth, err)
	}
	spans, err := Forged([]string{"mx2.example.org"}, contentOf(msg))
	if err != nil {
		t.Fatal(err)
	}
	env := &mta.Envelope{From: mta.Path{Local: "bob", Domain: "example.net"}}
	after := mta.Edit{Above: Fields("mx2.example.org", env, auth), Drop: spans}.Apply("Received: x\r\n", contentOf(msg))
	if got := check(t, v, after); len(got) != 1 || got[0].Result != "pass" {
		t.Errorf("got %+v of\n%s", got, readAll(t, after))
	}
	if text := readAll(t, after); strings.Contains(text, "X-Spam") || strings.Count(text, "Authentication-Results") != 1 {
		t.Errorf("got\n%s", text)
	}
}
