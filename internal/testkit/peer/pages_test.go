package peer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/internal/config"
	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit/peer"
)

// These tests hold docs/primary against the programs that it speaks of: what a page says under "tried" is put into the real
// program and has to do what the page says. We deliver from 127.0.0.2 where the pages say 198.51.100.20; whoever comes from
// 127.0.0.1 or 127.0.0.3 is a stranger.
const (
	us        = "127.0.0.2"
	neighbour = "127.0.0.1"
	stranger  = "127.0.0.3"
)

// raw reads a block of a page by what stands behind its language.
func raw(t *testing.T, page, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "primary", page))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?ms)^```[a-z]+ "+regexp.QuoteMeta(name)+"\n(.*?)^```").FindAllSubmatch(b, -1)
	if len(found) != 1 {
		t.Fatalf("%s has %d blocks %q", page, len(found), name)
	}
	return string(found[0][1])
}

// block is raw with our address and the primary's for those of the page.
func block(t *testing.T, page, name string) string {
	t.Helper()
	return strings.NewReplacer("198.51.100.20", us, "198.51.100.10", "127.0.0.1").Replace(raw(t, page, name))
}

// begin opens a session from an address and names a sender.
func begin(t *testing.T, addr, source string, o smtpc.Options) (*smtpc.Conn, error) {
	t.Helper()
	p, err := mta.ParsePrimary(addr)
	if err != nil {
		t.Fatal(err)
	}
	o.TLS.Mode = smtpc.TLSOff
	d := smtpc.Dialer{Hostname: "mx2.example.org", Source: []netip.Addr{netip.MustParseAddr(source)}, Timeouts: smtpc.Timeouts{Banner: 5 * time.Second}}
	c, err := d.DialWith(t.Context(), p, o)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	_, err = c.Mail(t.Context(), mta.Path{Local: "bob", Domain: "example.net"})
	return c, err
}

// rcpt is the reply to one recipient, or the error of the session.
func rcpt(t *testing.T, addr, source string, o smtpc.Options, to string) string {
	t.Helper()
	c, err := begin(t, addr, source, o)
	if err != nil {
		return err.Error()
	}
	path, err := mta.ParsePath(to)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Rcpt(t.Context(), path)
	if r.Code == 0 {
		return err.Error()
	}
	return r.String()
}

func client(addr string) *mta.Peer {
	return &mta.Peer{Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 4000), Helo: "h.example.net", Proto: "ESMTP"}
}

// want holds replies by their codes against what they should be.
func want(t *testing.T, what, got, code string) {
	t.Helper()
	if !strings.HasPrefix(got, code) {
		t.Errorf("%s: %s, want %s", what, got, code)
	}
}

// mainCF is a block of main.cf as parameters.
func mainCF(t *testing.T, name string, more ...string) map[string]string {
	t.Helper()
	set := map[string]string{"mynetworks": "127.0.0.9/32"}
	last := ""
	for line := range strings.Lines(block(t, "postfix.md", name)) {
		if strings.HasPrefix(line, " ") {
			set[last] += " " + strings.TrimSpace(line)
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("%s: %q", name, line)
		}
		last = strings.TrimSpace(k)
		set[last] = strings.TrimSpace(v)
	}
	for i := 0; i < len(more); i += 2 {
		set[more[i]] = more[i+1]
	}
	return set
}

func TestPostfixBelievesUsAndNobodyElse(t *testing.T) {
	p := peer.NewPostfix(t, mainCF(t, "main.cf", "smtpd_recipient_restrictions", "check_client_access inline:{192.0.2.66=REJECT}, reject_unauth_destination"))
	p.Start()
	for source, granted := range map[string]bool{us: true, neighbour: false} {
		c, err := begin(t, p.Addr, source, smtpc.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(c.Caps().XCLIENT, "ADDR") != granted {
			t.Errorf("%s: XCLIENT %v", source, c.Caps().XCLIENT)
		}
	}
	want(t, "a client that the primary refuses", rcpt(t, p.Addr, us, smtpc.Options{Client: client("192.0.2.66")}, "a@example.org"), "554")
	want(t, "another client", rcpt(t, p.Addr, us, smtpc.Options{Client: client("192.0.2.10")}, "a@example.org"), "250")
	want(t, "relaying through us", rcpt(t, p.Addr, us, smtpc.Options{}, "a@elsewhere.example"), "454") // smtpd_relay_restrictions
}

func TestPostfixTakesTheNetworksOfThePage(t *testing.T) {
	set := mainCF(t, "main.cf: networks")
	set["smtpd_recipient_restrictions"] = "permit_mynetworks, reject"
	p := peer.NewPostfix(t, set)
	p.Start()
	want(t, "this host", rcpt(t, p.Addr, neighbour, smtpc.Options{}, "a@example.org"), "250")
}

func TestPostscreenLetsUsPass(t *testing.T) {
	set := mainCF(t, "main.cf: postscreen", "postscreen_greet_wait", "3s", "postscreen_greet_action", "enforce", "smtpd_recipient_restrictions", "permit")
	list := set["postscreen_access_list"]
	delete(set, "postscreen_access_list")
	p := peer.NewPostfix(t, set)
	file := filepath.Join(p.ConfigDir(), "postscreen_access")
	if err := os.WriteFile(file, []byte(block(t, "postfix.md", "postscreen_access")), 0o644); err != nil {
		t.Fatal(err)
	}
	p.Reconfigure("postscreen_access_list=" + strings.ReplaceAll(list, "/etc/postfix", p.ConfigDir()))
	master := filepath.Join(p.ConfigDir(), "master.cf")
	b, err := os.ReadFile(master)
	if err != nil {
		t.Fatal(err)
	}
	cf := strings.Replace(string(b), p.Addr+" inet n - n - - smtpd\n", p.Addr+" inet n - n - 1 postscreen\nsmtpd pass - - n - - smtpd\ndnsblog unix - - n - 0 dnsblog\ntlsproxy unix - - n - 0 tlsproxy\n", 1)
	if err := os.WriteFile(master, []byte(cf), 0o644); err != nil {
		t.Fatal(err)
	}
	p.Start()
	for source, most := range map[string]time.Duration{us: 2 * time.Second, neighbour: time.Minute} {
		start := time.Now()
		want(t, source, rcpt(t, p.Addr, source, smtpc.Options{}, "a@example.org"), "250")
		if took := time.Since(start); took > most || source == neighbour && took < 2*time.Second {
			t.Errorf("%s waited %s\n%s", source, took, p.Log())
		}
	}
	if !strings.Contains(p.Log(), "ALLOWLISTED ["+us+"]") {
		t.Error(p.Log())
	}
}

func TestPostfixDoesNotLimitUs(t *testing.T) {
	p := peer.NewPostfix(t, mainCF(t, "main.cf: limits", "smtpd_client_connection_rate_limit", "2", "smtpd_recipient_restrictions", "permit"))
	p.Start()
	for range 5 {
		want(t, "we", rcpt(t, p.Addr, us, smtpc.Options{}, "a@example.org"), "250")
	}
	got := ""
	for range 5 {
		got = rcpt(t, p.Addr, stranger, smtpc.Options{}, "a@example.org")
	}
	if !strings.Contains(got, "421") {
		t.Errorf("a stranger: %s", got)
	}
}

func TestPostfixWithoutXCLIENTSparesUsTheRulesAboutClients(t *testing.T) {
	set := mainCF(t, "main.cf: without", "virtual_mailbox_maps", "inline:{a@example.org=mail/}")
	rules := set["smtpd_recipient_restrictions"]
	delete(set, "smtpd_recipient_restrictions")
	p := peer.NewPostfix(t, set)
	if err := os.WriteFile(filepath.Join(p.ConfigDir(), "backup_mx"), []byte(block(t, "postfix.md", "backup_mx")), 0o644); err != nil {
		t.Fatal(err)
	}
	p.Reconfigure("smtpd_recipient_restrictions=" + strings.ReplaceAll(rules, "/etc/postfix", p.ConfigDir()))
	p.Start()
	want(t, "we", rcpt(t, p.Addr, us, smtpc.Options{}, "a@example.org"), "250")
	want(t, "an unknown recipient", rcpt(t, p.Addr, us, smtpc.Options{}, "nobody@example.org"), "550")
	want(t, "relaying through us", rcpt(t, p.Addr, us, smtpc.Options{}, "a@elsewhere.example"), "454") // smtpd_relay_restrictions
	want(t, "a stranger", rcpt(t, p.Addr, stranger, smtpc.Options{}, "a@example.org"), "450")
}

func TestEximBelievesOurPROXYHeaderAndNobodyElses(t *testing.T) {
	e := peer.NewEximACL(t, true, block(t, "exim.md", "main"), "  deny hosts = 192.0.2.66\n  accept domains = example.org\n")
	e.Start()
	proxied := func(addr string) smtpc.Options { return smtpc.Options{Proxy: true, Client: client(addr)} }
	want(t, "a client that the primary refuses", rcpt(t, e.Addr, us, proxied("192.0.2.66"), "a@example.org"), "550")
	want(t, "another client", rcpt(t, e.Addr, us, proxied("192.0.2.10"), "a@example.org"), "250")
	want(t, "relaying through us", rcpt(t, e.Addr, us, proxied("192.0.2.10"), "a@elsewhere.example"), "550")
	want(t, "mail that comes directly", rcpt(t, e.Addr, neighbour, smtpc.Options{}, "a@example.org"), "250")
	if got := rcpt(t, e.Addr, us, smtpc.Options{}, "a@example.org"); !strings.Contains(got, "503") {
		t.Errorf("we without a header: %s", got)
	}
	if got := rcpt(t, e.Addr, stranger, proxied("192.0.2.10"), "a@example.org"); strings.HasPrefix(got, "250") {
		t.Errorf("a stranger with a header: %s", got)
	}
}

func TestEximWithoutPROXYSparesUsTheRulesAboutClients(t *testing.T) {
	e := peer.NewEximACL(t, false, block(t, "exim.md", "main: without")+"domainlist local_domains = example.org",
		block(t, "exim.md", "acl: without")+"  deny hosts = 127.0.0.0/8\n  accept\n")
	e.Start()
	want(t, "we", rcpt(t, e.Addr, us, smtpc.Options{}, "a@example.org"), "250")
	if got := rcpt(t, e.Addr, us, smtpc.Options{}, "nobody@example.org"); got != "550 unknown user" {
		t.Errorf("an unknown recipient: %s", got)
	}
	want(t, "relaying through us", rcpt(t, e.Addr, us, smtpc.Options{}, "a@elsewhere.example"), "550")
	want(t, "a stranger", rcpt(t, e.Addr, stranger, smtpc.Options{}, "a@example.org"), "550")
}

func TestEximDeliversAllOfADrainAtOnce(t *testing.T) {
	e := peer.NewExim(t, block(t, "exim.md", "main: drain")+"tls_advertise_hosts =")
	e.Start()
	nc, err := net.Dial("tcp", e.Addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := smtp.NewClient(nc, "mx1.example.org")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const n = 15
	for range n {
		deliver(t, c, "Subject: x\r\n\r\nx\r\n")
	}
	for deadline := time.Now().Add(7 * time.Second); len(e.Messages()) < n; time.Sleep(20 * time.Millisecond) { // its queue runner comes every ten
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d delivered\n%s", len(e.Messages()), n, e.Log())
		}
	}
}

func deliver(t *testing.T, c *smtp.Client, content string) {
	t.Helper()
	if err := c.Mail("bob@example.net"); err != nil {
		t.Fatal(err)
	}
	if err := c.Rcpt("a@example.org"); err != nil {
		t.Fatal(err)
	}
	w, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// elsewhere moves a listener of a page to a free port and returns where that is.
func elsewhere(t *testing.T, listener, from string) (moved, addr string) {
	t.Helper()
	addr = peer.FreeAddr(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(listener, from, from+" port "+port, 1), addr
}

func TestOpenSMTPDBelievesOurPROXYHeader(t *testing.T) {
	listener, addr := elsewhere(t, strings.Replace(block(t, "opensmtpd.md", "smtpd.conf"), " port 2525", "", 1), "127.0.0.1")
	o := peer.NewOpenSMTPD(t, listener+"filter spam phase connect match src { 192.0.2.66 } disconnect \"550 spam\"\n")
	o.Start()
	want(t, "another client", rcpt(t, addr, us, smtpc.Options{Proxy: true, Client: client("192.0.2.10")}, "a@example.org"), "250")
	if got := rcpt(t, addr, us, smtpc.Options{}, "a@example.org"); strings.HasPrefix(got, "250") {
		t.Errorf("without a header: %s", got)
	}
	if !strings.Contains(o.Log(), "address=192.0.2.10") {
		t.Errorf("it does not know the client:\n%s", o.Log())
	}
}

func TestOpenSMTPDWithoutPROXYSparesUsTheFilters(t *testing.T) {
	listener, addr := elsewhere(t, block(t, "opensmtpd.md", "listener: without"), "127.0.0.1")
	o := peer.NewOpenSMTPD(t, block(t, "opensmtpd.md", "smtpd.conf: without")+listener)
	o.Start()
	want(t, "we", rcpt(t, addr, us, smtpc.Options{}, "a@example.org"), "250")
	want(t, "relaying through us", rcpt(t, addr, us, smtpc.Options{}, "a@elsewhere.example"), "550")
	if got := rcpt(t, addr, stranger, smtpc.Options{}, "a@example.org"); !strings.Contains(got, "550") {
		t.Errorf("a stranger: %s", got)
	}
}

// handed is a message that we handed over, as it is under the primary's own field.
const handed = `Received: from h.example.net (unknown [192.0.2.10])
	by mx2.example.org (Understudy) with ESMTPS id 06h0i06vitpih0g0o1vtql48io
	(envelope-from <bob@example.net>)
	for <a@example.org>; Mon, 02 Nov 2026 15:30:57 +0000
From: bob@example.net
To: a@example.org
Subject: hello
Message-ID: <1@example.net>
Date: Mon, 02 Nov 2026 15:30:57 +0000

hello
`

// ask has rspamd judge the message as one that came from an address with a reverse name, and gives what the symbol TOLD says.
func ask(t *testing.T, r *peer.Rspamd, from, name string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.Addr+"/checkv2", strings.NewReader(strings.ReplaceAll(handed, "\n", "\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"IP": from, "Hostname": name, "Helo": "mx2.example.org", "From": "bob@example.net", "Rcpt": "a@example.org"} {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Symbols map[string]struct{ Options []string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return strings.Join(answer.Symbols["TOLD"].Options, " ")
}

// told is a rule that tells whom rspamd takes for the client, and whether that is one of its own.
const told = `rspamd_config.TOLD = { score = 0.0, type = 'postfilter', priority = 10, callback = function(task)
  local ip = task:get_from_ip()
  task:insert_result('TOLD', 0.0, ip:to_string(), tostring(ip:is_local()))
end }
`

func TestRspamdTakesTheClientFromOurField(t *testing.T) {
	for _, with := range []bool{true, false} {
		files := map[string]string{"rspamd.local.lua": told}
		sees := "198.51.100.20 false"
		if with {
			files["local.d/external_relay.conf"] = raw(t, "rspamd.md", "local.d/external_relay.conf")
			sees = "192.0.2.10 false"
		}
		r := peer.NewRspamd(t, files)
		r.Start()
		if got := ask(t, r, "198.51.100.20", "mx2.example.org"); got != sees {
			t.Errorf("with the page's settings %v: it sees %q, want %q", with, got, sees)
		}
		if got := ask(t, r, "203.0.113.9", "spam.example.net"); got != "203.0.113.9 false" {
			t.Errorf("with the page's settings %v: it takes a stranger who names us for %q", with, got)
		}
	}
}

func TestRspamdTakesNobodyOfAPrivateNetworkForItsOwn(t *testing.T) {
	for _, with := range []bool{true, false} {
		files, sees := map[string]string{"rspamd.local.lua": told}, "10.0.0.5 true"
		if with {
			files["override.d/options.inc"] = raw(t, "rspamd.md", "override.d/options.inc")
			sees = "10.0.0.5 false"
		}
		r := peer.NewRspamd(t, files)
		r.Start()
		if got := ask(t, r, "10.0.0.5", "mx2.example.org"); got != sees {
			t.Errorf("with the page's settings %v: it sees %q, want %q", with, got, sees)
		}
	}
}

func TestSpamAssassinTakesTheClientFromOurField(t *testing.T) {
	peer.Require(t, "spamc")
	message := "Received: from mx2.example.org (mx2.example.org [198.51.100.20])\n\tby mx1.example.org (Postfix) with ESMTPS id 4ABC\n" +
		"\tfor <a@example.org>; Mon, 02 Nov 2026 15:31:57 +0000 (UTC)\n" + handed
	for _, with := range []bool{true, false} {
		settings, sees := "trusted_networks 198.51.100.10\ninternal_networks 198.51.100.10\n", "ip=198.51.100.20"
		if with {
			settings, sees = raw(t, "spamassassin.md", "local.cf"), "ip=192.0.2.10"
		}
		s := peer.NewSpamd(t, settings+"add_header all Outside _RELAYSEXTERNAL_\n")
		s.Start()
		host, port, err := net.SplitHostPort(s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("spamc", "-d", host, "-p", port)
		cmd.Stdin = strings.NewReader(message)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		_, outside, _ := bytes.Cut(out, []byte("X-Spam-Outside: "))
		if first, _, _ := strings.Cut(string(outside), "rdns="); !strings.Contains(first, sees) {
			t.Errorf("with the page's settings %v: want %s in %q", with, sees, fmt.Sprintf("%.200s", outside))
		}
	}
}

// Every block of YAML is a piece of our own configuration.
func TestTheConfigurationOfThePagesIsValid(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join("..", "..", "..", "docs", "primary", "*.md"))
	if err != nil || len(pages) < 8 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	blocks := 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?ms)^```yaml[^\n]*\n(.*?)^```").FindAllSubmatch(b, -1) {
			blocks++
			text := string(m[1])
			if !strings.Contains(text, "domains:") {
				text = "domains:\n  example.org:\n    " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") + "\n"
			}
			text = strings.Replace(text, "example.org:\n", "example.org:\n    accept_all: true\n", 1)
			if _, err := config.Parse(filepath.Base(page), []byte("hostname: mx2.example.org\n"+text)); err != nil {
				t.Errorf("%v\n%s", err, text)
			}
		}
	}
	if blocks < 4 {
		t.Errorf("%d blocks: the test looks for the wrong thing", blocks)
	}
}
