package healthprobe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/dnsx"
	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
)

func TestJudge(t *testing.T) {
	at := func(step smtpc.Step, err error) error { return &smtpc.Error{Step: step, Err: err} }
	says := func(step smtpc.Step, code int, enhanced, text string) error {
		return &smtpc.Error{Step: step, Reply: mta.NewReply(code, enhanced, "%s", text)}
	}
	dial := func(errno syscall.Errno) error {
		return at(smtpc.StepDial, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)})
	}
	tests := []struct {
		name  string
		err   error
		want  result
		ours  bool
		words string
	}{
		{"all is well", nil, took, false, ""},
		{"nobody listens", dial(syscall.ECONNREFUSED), failed, false, "connection refused"},
		{"no way there", dial(syscall.EHOSTUNREACH), failed, false, "no route to it"},
		{"the other net is unreachable", dial(syscall.ENETUNREACH), failed, false, "no route to it"},
		{"we are out of files", dial(syscall.EMFILE), failed, true, "too many open files"},
		{"we are out of buffers", dial(syscall.ENOBUFS), failed, true, "no buffer space"},
		{"time ran out", at(smtpc.StepBanner, context.DeadlineExceeded), failed, false, "no answer in time"},
		{"the socket's time ran out", at(smtpc.StepBanner, &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}), failed, false, "no answer in time"},
		{"reset", at(smtpc.StepBanner, &net.OpError{Op: "read", Err: syscall.ECONNRESET}), failed, false, "it reset the connection"},
		{"hung up", at(smtpc.StepEHLO, io.ErrUnexpectedEOF), failed, false, "it closed the connection without a word"},
		{"nonsense", at(smtpc.StepBanner, smtpc.ErrGarbage), failed, false, "it does not speak SMTP"},
		{"no such host", at(smtpc.StepLookup, &net.DNSError{Err: "x", IsNotFound: true, UnwrapErr: dnsx.ErrNoName}), failed, false, "its name has no address"},
		{"the DNS is away", at(smtpc.StepLookup, &net.DNSError{Err: "SERVFAIL", IsTemporary: true}), failed, false, "its name can't be looked up now: SERVFAIL"},
		{"421", says(smtpc.StepBanner, 421, "4.3.2", "bye"), refused, false, "421 4.3.2 bye"},
		{"554 banner", says(smtpc.StepBanner, 554, "", "no"), refused, false, "554 no"},
		{"on a list", says(smtpc.StepRCPT, 554, "5.7.1", "blocked using dnsbl.test"), refused, false, "554 5.7.1 blocked using dnsbl.test"},
		{"503", says(smtpc.StepMAIL, 503, "5.5.1", "proxy required"), refused, false, "503 5.5.1 proxy required"},
		{"no TLS where we want it", at(smtpc.StepSTARTTLS, smtpc.ErrNoTLS), refused, false, "the primary does not offer STARTTLS"},
		{"TLS hangs", at(smtpc.StepSTARTTLS, context.DeadlineExceeded), failed, false, "no answer in time"},
		{"ourselves", at(smtpc.StepEHLO, errOurselves), failed, false, "it calls itself by our own name: mail would come back to us"},
		{"something else", errors.New("two\nlines"), failed, false, "two lines"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ours := judge(tt.err)
			if got != tt.want || ours != tt.ours || !strings.Contains(words(tt.err), tt.words) || tt.words == "" && words(tt.err) != "" {
				t.Errorf("judged %v, ours %v, %q", got, ours, words(tt.err))
			}
		})
	}
}

func TestNoPostmaster(t *testing.T) {
	for reply, want := range map[string]bool{
		"550 5.1.1 no such user": true, "550 5.1.10 no such user": true, "553 5.1.3 bad address": true,
		"550 no such user": false, "550 5.7.1 relay access denied": false, "554 5.1.1 no": false, "450 4.1.1 unverified": false, "550 5.1.2 bad system": false,
	} {
		var code int
		var text string
		if _, err := fmt.Sscanf(reply, "%d", &code); err != nil {
			t.Fatal(err)
		}
		text = reply[4:]
		if got := noPostmaster(mta.ParseReply(code, text)); got != want {
			t.Errorf("%s: %v, want %v", reply, got, want)
		}
	}
}

// aim makes a target of a scripted primary.
func aim(p *testkit.Primary) target {
	return target{
		primary: p.Primary(), to: mta.Path{Local: "postmaster", Domain: "example.org"}, depth: smtpc.StepRCPT,
		hostname: "mx2.example.org", timeout: 5 * time.Second,
	}
}

func TestAProbeTellsWhatItSaw(t *testing.T) {
	p := testkit.NewPrimary(t)
	cert, _ := testkit.Certificate(t, "127.0.0.1")
	p.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	p.Start()
	r := probe(t.Context(), &smtpc.Dialer{Hostname: "mx2.example.org"}, aim(p))
	var steps []string
	for _, f := range r.Facts {
		steps = append(steps, f.Step)
	}
	if want := []string{"dial", "banner", "ehlo", "starttls", "ehlo", "mail", "rcpt", "rset", "quit"}; !r.OK || !slices.Equal(steps, want) {
		t.Errorf("it took the steps %q and ended with %q", steps, r.Why)
	}
	if r.TLS == nil || r.TLS.Version != "TLS 1.3" || r.TLS.NotAfter.IsZero() {
		t.Errorf("TLS was %+v", r.TLS)
	}
	if !r.knows || !slices.Contains(r.Caps, "PIPELINING") {
		t.Errorf("it told %+v", r)
	}
}

func TestAProbeDialsAsADeliveryWould(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(*testkit.Primary)
		options smtpc.Options
		ok      bool
	}{
		"LMTP":                     {func(p *testkit.Primary) { p.LMTP = true }, smtpc.Options{LMTP: true}, true},
		"a PROXY header":           {func(p *testkit.Primary) { p.PROXY = true }, smtpc.Options{Proxy: true}, true},
		"a PROXY header is absent": {func(p *testkit.Primary) { p.PROXY = true }, smtpc.Options{}, false},
		"TLS is required":          {func(*testkit.Primary) {}, smtpc.Options{TLS: smtpc.TLSPolicy{Mode: smtpc.TLSRequire}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := testkit.NewPrimary(t)
			tt.change(p)
			p.Start()
			target := aim(p)
			target.options = tt.options
			target.timeout = time.Second
			if r := probe(t.Context(), &smtpc.Dialer{Hostname: "mx2.example.org"}, target); r.OK != tt.ok {
				t.Errorf("it ended with %q at %s", r.Why, r.Step)
			}
		})
	}
}

func TestTheFaultsOfAConfigAreAllTold(t *testing.T) {
	c := DefaultConfig()
	if f := c.Validate(); len(f) > 0 {
		t.Errorf("the defaults have faults: %v", f)
	}
	c = Config{Depth: "knee", Self: []string{"192.0.2.1", "mx.example.org", "no name"}, Rise: 3, FlapRise: 2}
	var keys []string
	for _, f := range c.Validate() {
		keys = append(keys, f.Key)
	}
	want := "every every_down every_long_down every_refusing confirm dial_timeout timeout route_min_ttl fall flap_falls flap_rise max_probes max_lookups depth mx_port self[2]"
	if got := strings.Join(keys, " "); got != want {
		t.Errorf("faults at %s\nwant %s", got, want)
	}
	d := Domain{Primaries: []string{"mx1.example.org", "mx1.example.org:25", "a b", "mx:0"}, ProbeRecipient: "postmaster"}
	keys = nil
	for _, f := range d.Validate() {
		keys = append(keys, f.Key)
	}
	if got, want := strings.Join(keys, " "), "primaries[1] primaries[2] primaries[3] probe_recipient"; got != want {
		t.Errorf("faults at %s, want %s", got, want)
	}
}
