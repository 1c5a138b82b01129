package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"understudy/internal/dnsx/dnstest"
	"understudy/internal/testkit/peer"
)

// spam is one message that a filter which sees its true client refuses; with refused false it is clean.
type spam struct {
	name, client, helo, from string
	header                   string // fields above the usual ones
	headerFrom               string
	body                     string
	refused                  bool
}

// corpus is made here, so that no filter finds spam in this file.
func corpus() []spam {
	const good, listed, other = "192.0.2.10", "192.0.2.66", "192.0.2.77"
	plain := func(s spam) spam {
		if s.client == "" {
			s.client = good
		}
		if s.helo == "" {
			s.helo = "client.example.net"
		}
		if s.from == "" {
			s.from = "alice@example.net"
		}
		if s.headerFrom == "" {
			s.headerFrom = s.from
		}
		if s.body == "" {
			s.body = "Dear Bob,\r\n\r\nplease find below the minutes of our meeting on Tuesday.\r\n\r\nAlice\r\n"
		}
		return s
	}
	all := []spam{
		{name: "clean"},
		{name: "clean again"},
		{name: "gtube", body: "XJS*C4JDBQADN1.NSBN3" + "*2IDNEN*GTUBE-STANDARD-" + "ANTI-UBE-TEST-EMAIL*C.34X\r\n", refused: true},
		{name: "listed client", client: listed, from: "carol@open.test", refused: true},
		{name: "SPF fails", client: other, refused: true},
		{name: "DMARC rejects", client: other, from: "bounce@open.test", headerFrom: "alice@example.net", refused: true},
		{name: "our own domain forged", client: other, from: "ceo@example.org", refused: true},
		{name: "forged results", client: listed, from: "carol@open.test", refused: true,
			header: "Authentication-Results: mx1.example.org; spf=pass; dkim=pass; dmarc=pass\r\nX-Spam-Status: No, score=-99\r\nX-Rspamd-Score: -99\r\n" +
				"Authentication-Results: mx2.example.org; spf=pass; dmarc=pass\r\n"},
		{name: "address in HELO", client: listed, helo: "x.(client.example.net[192.0.2.10])", from: "carol@open.test", refused: true},
		{name: "forged Received", client: listed, from: "carol@open.test", refused: true,
			header: "Received: from client.example.net (client.example.net [192.0.2.10])\r\n\tby mx2.example.org (Understudy) with ESMTPS id x\r\n\t(envelope-from <alice@example.net>); Mon, 23 Nov 2026 12:00:00 +0000\r\n"},
	}
	for i := range all {
		all[i] = plain(all[i])
	}
	return all
}

func (s *spam) content(road string) []byte {
	return fmt.Appendf(nil, "%sFrom: <%s>\r\nTo: bob@example.org\r\nSubject: %s, %s\r\nMessage-ID: <%s.%s@example.net>\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n\r\n%s",
		s.header, s.headerFrom, s.name, road, strings.ReplaceAll(s.name, " ", "."), road, s.body)
}

// worldDNS is what everybody in the test asks.
func worldDNS(t testing.TB) *dnstest.Server {
	return dnstest.New(t, dnstest.Zones{
		"example.net":                {"MX 10 client.example.net.", "TXT \"v=spf1 ip4:192.0.2.10 -all\""},
		"client.example.net":         {"A 192.0.2.10"},
		"_dmarc.example.net":         {"TXT \"v=DMARC1; p=reject\""},
		"10.2.0.192.in-addr.arpa":    {"PTR client.example.net."},
		"open.test":                  {"MX 10 mx.open.test."},
		"mx.open.test":               {"A 192.0.2.70"},
		"example.org":                {"MX 10 mx1.example.org.", "MX 20 mx2.example.org.", "TXT \"v=spf1 ip4:198.51.100.1 -all\""},
		"mx1.example.org":            {"A 198.51.100.1"},
		"mx2.example.org":            {"A 198.51.100.20"},
		"_dmarc.example.org":         {"TXT \"v=DMARC1; p=reject\""},
		"66.2.0.192.dnsbl.test":      {"A 127.0.0.2"},
		"2.0.0.127.dnsbl.test":       {"A 127.0.0.2"},
		"66.2.0.192.in-addr.arpa":    {"PTR host66.open.test."},
		"host66.open.test":           {"A 192.0.2.66"},
		"mx1.example.org.test":       {"A 127.0.0.1"},
		"1.100.51.198.in-addr.arpa":  {"PTR mx1.example.org."},
		"20.100.51.198.in-addr.arpa": {"PTR mx2.example.org."},
	})
}

// filtering is a Postfix with an rspamd that refuses what the corpus calls spam; it believes us, who are on loopback,
// about who the client is.
func filtering(t *testing.T, dns *dnstest.Server) (*peer.Postfix, *peer.Rspamd) {
	rspamd := peer.NewRspamd(t, map[string]string{
		"local.d/options.inc":         fmt.Sprintf("dns {\n nameserver = [%q];\n timeout = 1s;\n retransmits = 2;\n}\n", dns.Addr()),
		"local.d/rbl.conf":            "rbls { test { symbol = \"TEST_RBL\"; rbl = \"dnsbl.test\"; ipv4 = true; checks = [\"from\"]; } }\n",
		"local.d/rbl_group.conf":      "symbols = { \"TEST_RBL\" { weight = 20; } }\n",
		"local.d/policies_group.conf": "symbols = { \"R_SPF_FAIL\" { weight = 20; } }\n",
		"local.d/dmarc.conf":          "actions = { reject = \"reject\"; }\n",
		"local.d/greylist.conf":       "enabled = false;\n",
	})
	rspamd.Start()
	primary := peer.NewPostfix(t, map[string]string{
		"smtpd_authorized_xclient_hosts": "127.0.0.0/8", "smtpd_recipient_restrictions": "permit_auth_destination, reject",
		"smtpd_milters": "inet:" + rspamd.MilterAddr, "milter_default_action": "tempfail",
	})
	return primary, rspamd
}

// direct gives a message to the primary as its client would: the address is the client's own.
func (s *spam) direct(t *testing.T, addr string) string {
	t.Helper()
	c, err := call(addr, "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.say("XCLIENT ADDR=" + s.client + " NAME=[UNAVAILABLE]")
	c.say("EHLO " + s.helo)
	answer, err := c.give(s.from, "bob@example.org", s.content("directly"))
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// through gives it to us.
func (s *spam) through(t *testing.T, addr, road string) string {
	t.Helper()
	c, err := call(addr, s.client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.say("EHLO " + s.helo)
	answer, err := c.give(s.from, "bob@example.org", s.content(road))
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestWhatThePrimaryRefusesNeverGetsInThroughUs(t *testing.T) {
	for _, tt := range []struct {
		name, judging string
		refuses       bool // as much as the primary would, in an outage too
	}{
		{"judged by us first", `policy: {judge: {dns_lists: ["dnsbl.test*10"]}}`, false},
		{"judged by the primary alone", `policy: {judge: {stages: [client]}}`, false},
		{"judged by the primary's own filter", `policy: {filters: [{kind: rspamd, address: "RSPAMD"}], judge: {greylist: {max_entries: 0}}}`, true},
	} {
		t.Run(tt.name, func(t *testing.T) { testBypass(t, tt.judging, tt.refuses) })
	}
}

func testBypass(t *testing.T, judging string, refuses bool) {
	t.Helper()
	dns := worldDNS(t)
	primary, rspamd := filtering(t, dns)
	s := newServer(t, behind(primary)+proxied+fmt.Sprintf("dns: {resolvers: [%q]}\n", dns.Addr())+strings.ReplaceAll(judging, "RSPAMD", rspamd.Addr)+"\n")
	primary.Start()
	s.start()
	s.untilPrimary("up")
	clean := 0
	for _, m := range corpus() {
		answer := m.direct(t, primary.Addr)
		if refused := answer[0] == '5'; refused != m.refused {
			t.Fatalf("%s: the primary itself says %q: the corpus is wrong, or the primary", m.name, answer)
		}
		if inline := m.through(t, s.smtp, "inline"); inline[0] != answer[0] {
			t.Errorf("%s: the primary itself says %q, through us it is %q", m.name, answer, inline)
		}
		if !m.refused {
			clean++
		}
	}
	for _, m := range corpus() { // each through us
		seen := fmt.Sprintf(`id: <%s.inline@example.net>,.* ip: %s,`, regexp.QuoteMeta(strings.ReplaceAll(m.name, " ", ".")), regexp.QuoteMeta(m.client))
		if !regexp.MustCompile(seen).MatchString(rspamd.Log()) {
			t.Errorf("%s: rspamd never saw the true client %s:\n%s", m.name, m.client, tail(rspamd.Log(), 2000))
		}
	}
	primary.Stop()
	s.untilPrimary("down")
	for _, m := range corpus() {
		answer := m.through(t, s.smtp, "drained")
		t.Logf("%s, in an outage: %s", m.name, answer)
		if refuses && m.refused && answer[0] != '5' {
			t.Errorf("%s: the primary would refuse it, we say %q", m.name, answer)
		}
		if !m.refused && answer[0] != '2' {
			t.Errorf("%s: clean mail is answered %q in an outage", m.name, answer)
		}
	}
	primary.Start()
	s.until("nothing waits", func() bool { return s.waiting() == 0 })
	until(t, "the clean mail is in the mailbox", limit, func() bool { return primary.Delivered() >= 3*clean })
	arrived := map[string]bool{}
	for _, m := range primary.Messages() {
		_, rest, _ := strings.Cut(string(m), "\nSubject: ")
		subject, _, _ := strings.Cut(rest, "\n")
		arrived[subject] = true
	}
	for _, m := range corpus() {
		for _, road := range []string{"directly", "inline", "drained"} {
			if got := arrived[m.name+", "+road]; got == m.refused {
				t.Errorf("%s, %s: in the mailbox: %v", m.name, road, got)
			}
		}
	}
	s.stop()
}
