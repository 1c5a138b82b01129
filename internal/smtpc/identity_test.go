package smtpc_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

func TestATLSPolicyIsKeptOrNoMailGoes(t *testing.T) {
	good, trust := testkit.Certificate(t, "127.0.0.1", "mx1.example.org")
	other, _ := testkit.Certificate(t, "other.example.org")
	pin := sha256.Sum256(good.Leaf.RawSubjectPublicKeyInfo)
	full := sha256.Sum256(good.Leaf.Raw)
	tlsa := func(rs ...smtpc.TLSA) func(context.Context, string, uint16) ([]smtpc.TLSA, bool, error) {
		return func(context.Context, string, uint16) ([]smtpc.TLSA, bool, error) { return rs, true, nil }
	}
	ee := smtpc.TLSA{Usage: 3, Selector: 1, Matching: 1, Data: pin[:]}
	tests := []struct {
		name    string
		cert    *tls.Certificate // nil: no STARTTLS
		policy  smtpc.TLSPolicy
		tlsa    func(context.Context, string, uint16) ([]smtpc.TLSA, bool, error)
		failure string // in the words of RFC 8460; empty: a session
		clear   bool
	}{
		{"opportunistic, in clear", nil, smtpc.TLSPolicy{}, nil, "", true},
		{"opportunistic, any certificate", &other, smtpc.TLSPolicy{}, nil, "", false},
		{"off", &good, smtpc.TLSPolicy{Mode: smtpc.TLSOff}, nil, "", true},
		{"require, in clear", nil, smtpc.TLSPolicy{Mode: smtpc.TLSRequire}, nil, "starttls-not-supported", false},
		{"require, any certificate", &other, smtpc.TLSPolicy{Mode: smtpc.TLSRequire}, nil, "", false},
		{"verify", &good, smtpc.TLSPolicy{Mode: smtpc.TLSVerify, Roots: trust}, nil, "", false},
		{"verify, in clear", nil, smtpc.TLSPolicy{Mode: smtpc.TLSVerify, Roots: trust}, nil, "starttls-not-supported", false},
		{"verify, unknown authority", &other, smtpc.TLSPolicy{Mode: smtpc.TLSVerify, Roots: trust}, nil, "certificate-not-trusted", false},
		{"verify, another name", &good, smtpc.TLSPolicy{Mode: smtpc.TLSVerify, Roots: trust, Names: []string{"mx9.example.org"}}, nil, "certificate-host-mismatch", false},
		{"verify, one of two names", &good, smtpc.TLSPolicy{Mode: smtpc.TLSVerify, Roots: trust, Names: []string{"mx9.example.org", "mx1.example.org"}}, nil, "", false},
		{"pin", &good, smtpc.TLSPolicy{Mode: smtpc.TLSPin, Pins: [][32]byte{{1}, pin}}, nil, "", false},
		{"pin, another key", &other, smtpc.TLSPolicy{Mode: smtpc.TLSPin, Pins: [][32]byte{pin}}, nil, "validation-failure", false},
		{"dane", &good, smtpc.TLSPolicy{Mode: smtpc.TLSDANE}, tlsa(smtpc.TLSA{Usage: 3, Selector: 0, Matching: 2, Data: full[:]}, ee), "", false},
		{"dane, the whole certificate", &good, smtpc.TLSPolicy{Mode: smtpc.TLSDANE}, tlsa(smtpc.TLSA{Usage: 3, Data: good.Leaf.Raw}), "", false},
		{"dane, another key", &other, smtpc.TLSPolicy{Mode: smtpc.TLSDANE}, tlsa(ee), "tlsa-invalid", false},
		{"dane, stripped", nil, smtpc.TLSPolicy{Mode: smtpc.TLSDANE}, tlsa(ee), "starttls-not-supported", false},
		{"dane, nothing usable, in clear", nil, smtpc.TLSPolicy{Mode: smtpc.TLSDANE}, tlsa(smtpc.TLSA{Usage: 1, Data: []byte("x")}), "starttls-not-supported", false},
		{"dane, no records", nil, smtpc.TLSPolicy{Mode: smtpc.TLSDANE}, tlsa(), "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := started(t, func(p *testkit.Primary) {
				if tt.cert != nil {
					p.TLS = &tls.Config{Certificates: []tls.Certificate{*tt.cert}}
				}
			})
			d := dialer()
			d.TLSA = tt.tlsa
			c, err := d.DialWith(t.Context(), p.Primary(), smtpc.Options{TLS: tt.policy})
			if got := smtpc.TLSFailure(err); got != tt.failure {
				t.Fatalf("failure %q (%v), want %q", got, err, tt.failure)
			}
			if err == nil {
				defer c.Close()
				if clear := c.TLS() == nil; clear != tt.clear {
					t.Errorf("in clear: %v", clear)
				}
			}
		})
	}
}

func TestNotToKnowTheTLSARecordsIsNotToSend(t *testing.T) {
	p := started(t, nil)
	d := dialer()
	d.TLSA = func(context.Context, string, uint16) ([]smtpc.TLSA, bool, error) {
		return nil, false, errors.New("SERVFAIL")
	}
	if _, err := d.DialWith(t.Context(), p.Primary(), smtpc.Options{TLS: smtpc.TLSPolicy{Mode: smtpc.TLSDANE}}); err == nil || p.Conns() != 0 {
		t.Errorf("%v, %d sessions", err, p.Conns())
	}
}

func TestTheClientCertificateIsShown(t *testing.T) {
	server, _ := testkit.Certificate(t, "127.0.0.1")
	ours, trust := testkit.Certificate(t, "mx2.example.org")
	p := started(t, func(p *testkit.Primary) {
		p.TLS = &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trust}
	})
	c, err := dialer().DialWith(t.Context(), p.Primary(), smtpc.Options{TLS: smtpc.TLSPolicy{Mode: smtpc.TLSRequire, Certificates: []tls.Certificate{ours}}})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func peerOf(addr, name, helo string) *mta.Peer {
	return &mta.Peer{Addr: netip.MustParseAddrPort(addr), Name: name, Helo: helo, Proto: "ESMTPS"}
}

func TestThePrimaryIsToldWhoTheClientWas(t *testing.T) {
	evil := peerOf("[2001:db8::7]:4711", "", "x.(mail.example.net[192.0.2.10]) ADDR=127.0.0.1\r\nQUIT")
	plain := peerOf("192.0.2.10:1234", "mail.example.net", "mail.example.net")
	tests := []struct {
		name   string
		set    func(*testkit.Primary)
		client *mta.Peer
		proxy  bool
		want   string // what the primary was told; empty: nothing
		helo   string
	}{
		{"XCLIENT", func(p *testkit.Primary) { p.XCLIENT = true }, plain, false,
			"HELO=mail.example.net PROTO=ESMTP PORT=1234 NAME=mail.example.net ADDR=192.0.2.10", "mail.example.net"},
		{"XCLIENT, neutered", func(p *testkit.Primary) { p.XCLIENT = true }, evil, false,
			"HELO=x.?mail.example.net?192.0.2.10???ADDR+3D127.0.0.1??QUIT PROTO=ESMTP PORT=4711 NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::7",
			"x.?mail.example.net?192.0.2.10???ADDR=127.0.0.1??QUIT"},
		{"XCLIENT not granted", nil, plain, false, "", "mx2.example.org"},
		{"XCLIENT refused", func(p *testkit.Primary) {
			p.XCLIENT = true
			p.On(testkit.AtXCLIENT, testkit.Say("501 5.5.4 bad address family"))
		}, plain, false, "", "mx2.example.org"},
		{"EHLO refused to the client", func(p *testkit.Primary) {
			p.XCLIENT = true
			p.SetScript(func(at testkit.Point) testkit.Action {
				if at.Step == testkit.AtEHLO && at.Arg == "mail.example.net" {
					return testkit.Say("550 5.7.1 I don't like you")
				}
				return testkit.Action{}
			})
		}, plain, false, "", "mx2.example.org"},
		{"PROXY", func(p *testkit.Primary) { p.PROXY = true }, plain, true, "PROXY 192.0.2.10:1234", "mail.example.net"},
		{"PROXY, both families", func(p *testkit.Primary) { p.PROXY = true }, evil, true, "PROXY [2001:db8::7]:4711", ""},
		{"PROXY without a client", func(p *testkit.Primary) { p.PROXY = true }, nil, true, "PROXY LOCAL", "mx2.example.org"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := started(t, tt.set)
			c, err := dialer().DialWith(t.Context(), p.Primary(), smtpc.Options{Client: tt.client, Proxy: tt.proxy})
			if err != nil {
				t.Fatal(err)
			}
			if want := tt.want != "" && tt.client != nil; c.Identified() != want {
				t.Errorf("identified: %v", c.Identified())
			}
			q := &queue{left: []*smtpc.Message{message(t, 1, "x\r\n")}}
			if err := c.Stream(t.Context(), q, smtpc.StreamOptions{}); err != nil {
				t.Fatal(err)
			}
			m := p.Messages()[0]
			if m.XClient != tt.want || tt.helo != "" && m.Helo != tt.helo {
				t.Errorf("told %q and EHLO %q, want %q and %q", m.XClient, m.Helo, tt.want, tt.helo)
			}
		})
	}
}

func TestALongXCLIENTIsSplitAndTheAddressComesLast(t *testing.T) {
	p := started(t, func(p *testkit.Primary) { p.XCLIENT = true })
	client := peerOf("192.0.2.10:1234", strings.Repeat("n", 250), strings.Repeat("ü", 120)+strings.Repeat("=", 100))
	c, err := dialer().DialWith(t.Context(), p.Primary(), smtpc.Options{Client: client})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var lines []string
	for _, l := range p.Commands() {
		if strings.HasPrefix(l, "XCLIENT") {
			lines = append(lines, l)
		}
	}
	if len(lines) != 2 || !strings.HasSuffix(lines[1], "ADDR=192.0.2.10") {
		t.Errorf("%q", lines)
	}
	for _, l := range lines {
		if len(l)+2 > 512 {
			t.Errorf("%d octets", len(l)+2)
		}
	}
}

func TestOnlyAddressesOfTheInternetAreConveyed(t *testing.T) {
	for a, want := range map[string]bool{"192.0.2.1": true, "2001:db8::1": true, "127.0.0.1": false, "::1": false, "10.1.2.3": false, "172.16.0.1": false,
		"192.168.1.1": false, "169.254.1.1": false, "fe80::1": false, "fd00::1": false, "100.64.1.1": false, "0.0.0.0": false, "224.0.0.1": false,
		"::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "255.255.255.255": false, "::": false,
		"0.1.2.3": false, "240.0.0.1": false, "fec0::1": false, "64:ff9b:1::1": false, "::10.0.0.1": false,
		"64:ff9b::10.0.0.1": false, "64:ff9b::192.0.2.1": true, "2002:a00:1::1": false, "2002:c000:201::1": true} {
		if got := smtpc.Conveyable(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}
