package mailauth

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy/internal/dnsx/dnstest"
	"understudy/internal/mta"
	"understudy/internal/testkit/peer"
)

// run gives a program input and returns what it says.
func run(t *testing.T, stdin string, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", argv[0], err, out, errs.String())
	}
	return string(out)
}

// Mail::DKIM of Perl, which SpamAssassin uses.
const mailDKIM = `use strict; use Mail::DKIM::Signer; binmode STDIN; binmode STDOUT;
my $s = Mail::DKIM::Signer->new(Algorithm => "rsa-sha256", Method => $ARGV[0], Domain => "example.net", Selector => "sel", KeyFile => $ARGV[1]);
my $m = ""; while (<STDIN>) { $m .= $_; $s->PRINT($_) } $s->CLOSE;
print $s->signature->as_string, "\r\n", $m;`

// What one implementation signed we verify, and after our Edit another one still does.
func TestOthersVerifyWhatWePassOn(t *testing.T) {
	peer.Require(t, "opendkim", "perl")
	k := rsaKey(t)
	dir := t.TempDir()
	put := func(name, text string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	secret := put("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k.signer.(*rsa.PrivateKey))})))
	record := strings.NewReplacer("TXT ", "", `" "`, "", `"`, "").Replace(k.record)
	conf := put("opendkim.conf", "Mode v\nTestPublicKeys "+put("keys", "sel._domainkey.example.net "+record+"\n")+"\n")
	openDKIM := func(msg string) string { return run(t, "", "opendkim", "-x", conf, "-t", put("message", msg)) }
	v := verifier(t, resolver(t, dnstest.Zones{"sel._domainkey.example.net": {k.record}, "_dmarc.example.net": {`TXT "v=DMARC1; p=reject"`}}))
	const marks = "X-Spam-Flag: NO\r\nAuthentication-Results: mx2.example.org; spf=pass\r\n"
	for _, tt := range []struct{ name, msg, before string }{
		{"plain", plainMessage, ""},
		{"marks at the top", plainMessage, "DKIM-Signature"},
		{"marks in the middle", plainMessage, "Date: "},
		{"8-bit, odd blanks", strings.ReplaceAll(plainMessage, "hello", "h\xe4llo  \t ") + " \r\n\r\n\r\n", "To: "},
	} {
		for _, method := range []string{"relaxed/relaxed", "simple/simple"} {
			t.Run(tt.name+", "+method, func(t *testing.T) {
				msg := run(t, tt.msg, "perl", "-e", mailDKIM, method, secret)
				if tt.before != "" { // who signs does not know what comes on the way
					msg = strings.Replace(msg, tt.before, marks+tt.before, 1)
				}
				auth, _, err := v.Content(t.Context(), contentOf(msg), mta.Auth{})
				if err != nil || len(auth.DKIM) != 1 || auth.DKIM[0].Result != "pass" || auth.DMARC.Result != "pass" {
					t.Fatalf("got %+v, %v of\n%s", auth, err, msg)
				}
				spans, err := Forged([]string{"mx2.example.org"}, contentOf(msg))
				if err != nil || tt.before != "" != (len(spans) > 0) {
					t.Fatal(spans, err)
				}
				after := readAll(t, mta.Edit{Above: Fields("mx2.example.org", envelope(bob, "client.example.net"), auth), Drop: spans}.
					Apply("Received: x\r\n", contentOf(msg)))
				if got := openDKIM(after); !strings.Contains(got, "(s=sel, d=example.net, 2048-bit key) succeeded") {
					t.Errorf("OpenDKIM says %q of\n%s", got, after)
				}
				broken := strings.Replace(after, "world.", "w0rld.", 1) // what it calls broken, we do
				if got := check(t, v, contentOf(broken)); !strings.Contains(openDKIM(broken), "failed") || len(got) != 1 || got[0].Result != "fail" {
					t.Errorf("got %+v", got)
				}
			})
		}
	}
}

const mailAuthenticationResults = `use strict; use Mail::AuthenticationResults::Parser; local $/;
my $p = Mail::AuthenticationResults::Parser->new->parse(scalar <STDIN>);
print $p->value->value, "\n";
for my $c (@{$p->children}) { print $c->key, "=", $c->value; for my $s (@{$c->children}) {
	print ref($s) =~ /::Comment/ ? "" : " " . $s->key . "=" . $s->value } print "\n" }`

const rspamdParser = `local a = require "lua_auth_results"
for line in io.lines() do local t, keys = a.parse_ar_element(line), {} for k in pairs(t) do keys[#keys+1] = k end
table.sort(keys) local s = {} for _, k in ipairs(keys) do s[#s+1] = k .. "=" .. t[k] end print(table.concat(s, " ")) end
`

// Authentication-Results go through the parsers of Perl and of rspamd.
func TestOtherParsersReadWhatWasWritten(t *testing.T) {
	peer.Require(t, "perl", "rspamadm")
	text := AuthenticationResults("mx2.example.org", envelope(bob, "client.example.net"), fullAuth())
	_, value, _ := strings.Cut(text, ": ")
	want := "mx2.example.org\nspf=pass smtp.mailfrom=bob@example.net\ndkim=pass header.d=example.net header.s=sel\n" +
		"dkim=fail header.d=example.com header.s=s2\ndmarc=pass policy.dmarc=reject header.from=example.net\n"
	if got := run(t, value, "perl", "-e", mailAuthenticationResults); got != want {
		t.Errorf("Mail::AuthenticationResults: got\n%swant\n%s", got, want)
	}
	script := filepath.Join(t.TempDir(), "read.lua")
	if err := os.WriteFile(script, []byte(rspamdParser), 0o644); err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for element := range strings.SplitSeq(strings.NewReplacer("\r\n", "", "\t", " ").Replace(value), ";") {
		if strings.Contains(element, "=") {
			fmt.Fprintln(&lines, strings.TrimSpace(element))
		}
	}
	want = "smtp.mailfrom=bob@example.net spf=pass\ndkim=pass header.d=example.net header.s=sel\n" +
		"dkim=fail header.d=example.com header.s=s2\ndmarc=pass header.from=example.net policy.dmarc=reject\n"
	if got := run(t, lines.String(), "rspamadm", "lua", "-b", script); got != want {
		t.Errorf("rspamd: got\n%swant\n%s", got, want)
	}
}

const spamAssassinConf = `trusted_networks 198.51.100.20
internal_networks 198.51.100.20
loadplugin Mail::SpamAssassin::Plugin::AuthRes
use_bayes 0
skip_rbl_checks 1
skip_uribl_checks 1
dns_available yes
dns_server %s
header AR_SPF_PASS eval:check_authres_result('spf','pass')
header AR_SPF_FAIL eval:check_authres_result('spf','fail')
header AR_DKIM_PASS eval:check_authres_result('dkim','pass')
header AR_DMARC_PASS eval:check_authres_result('dmarc','pass')
score AR_SPF_PASS 1
score AR_SPF_FAIL 1
score AR_DKIM_PASS 1
score AR_DMARC_PASS 1
`

// SpamAssassin behind the primary takes our word on SPF where it stands above our Received, and only there: what the
// sender wrote stands below, and counts for nothing.
func TestSpamAssassinTakesOurWordOnlyAboveOurReceived(t *testing.T) {
	peer.Require(t, "spamassassin")
	site := filepath.Join(t.TempDir(), "site")
	if out, err := exec.CommandContext(t.Context(), "cp", "-r", "/etc/spamassassin", site).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	conf := fmt.Sprintf(spamAssassinConf, dnstest.New(t, dnstest.Zones{"example": {"A 192.0.2.1"}}).Addr())
	if err := os.WriteFile(filepath.Join(site, "local.cf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	const primarys = "Received: from mx2.example.org (mx2.example.org [198.51.100.20])\r\n\tby mail.example.org (Postfix) with ESMTPS id 4ABC\r\n" +
		"\tfor <u@example.org>; Tue, 03 Feb 2026 04:05:07 +0000\r\n"
	const ours = "Received: from client.example.net (client.example.net [192.0.2.10])\r\n\tby mx2.example.org (Understudy) with ESMTPS id ID\r\n" +
		"\t(envelope-from <bob@example.net>)\r\n\tfor <u@example.org>; Tue, 03 Feb 2026 04:05:06 +0000\r\n"
	env := envelope(bob, "client.example.net")
	pass, fail := fullAuth(), mta.Auth{
		SPF:  mta.AuthResult{Result: "fail", Domain: "example.net"},
		Helo: mta.AuthResult{Result: "none", Domain: "client.example.net"},
	}
	const host = "mx2.example.org"
	for _, tt := range []struct {
		name, msg  string
		want, none []string
	}{
		{"above", primarys + Fields(host, env, pass) + ours, []string{"SPF_PASS", "SPF_HELO_NONE", "AR_SPF_PASS", "AR_DKIM_PASS", "AR_DMARC_PASS"}, nil},
		{"only Authentication-Results", primarys + AuthenticationResults(host, env, pass) + ours, []string{"SPF_PASS", "AR_SPF_PASS"}, nil},
		{"only Received-SPF", primarys + ReceivedSPF(host, env, pass) + ours, []string{"SPF_PASS", "SPF_HELO_NONE"}, []string{"AR_SPF_PASS"}},
		{"below", primarys + ours + Fields(host, env, pass), nil, []string{"SPF_PASS", "AR_SPF_PASS", "AR_DKIM_PASS"}},
		{"forged below ours", primarys + Fields(host, env, fail) + ours + Fields(host, env, pass), []string{"SPF_FAIL", "AR_SPF_FAIL"}, []string{"SPF_PASS", "AR_SPF_PASS"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, tt.msg+plainMessage, "spamassassin", "-t", "--siteconfigpath="+site, "--prefspath=/dev/null")
			_, report, _ := strings.Cut(got, "Content analysis details:")
			for _, w := range tt.want {
				if !strings.Contains(report, " "+w+" ") {
					t.Errorf("%s is missing", w)
				}
			}
			for _, w := range tt.none {
				if strings.Contains(report, " "+w+" ") {
					t.Errorf("%s must not be", w)
				}
			}
			if t.Failed() {
				t.Log(report)
			}
		})
	}
}
