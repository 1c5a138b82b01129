package forwarder

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/testkit/peer"
)

// process runs a server until the end of the test, once it listens at addr. What it says is in the returned buffer.
func process(t *testing.T, addr string, name string, args ...string) *lines {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // lets it end its children
	cmd.WaitDelay = 10 * time.Second
	out := &lines{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() { cmd.Wait() })
	t.Cleanup(func() {
		stop()
		ended.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen: %v\n%s", name, err, out.b.String())
		}
	}
}

func at(t *testing.T, addr string) []mta.Primary {
	t.Helper()
	p, err := mta.ParsePrimary(addr)
	if err != nil {
		t.Fatal(err)
	}
	return []mta.Primary{p}
}

// sized makes a message of about n octets with a number in it to know it by, and lines that begin with dots.
func sized(n, number int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Subject: number %d\r\n\r\n", number)
	r := rand.New(rand.NewPCG(uint64(number), uint64(n)))
	for b.Len() < n {
		line := make([]byte, min(r.IntN(76), n-b.Len())+1)
		for i := range line {
			line[i] = ". abcdefghijklmnopqrstuvwxyz"[r.IntN(28)]
		}
		b.Write(line)
		b.WriteString("\r\n")
	}
	return b.String()
}

var sizes = []int{0, 1, 100, 4 << 10, 70 << 10, 300 << 10, 5 << 20, 50 << 20}

// sendSizes hands one message of each size over, between small ones, and returns them all.
func sendSizes(t *testing.T, w *world, rcpts ...string) []string {
	t.Helper()
	var all []string
	add := func(content string) {
		all = append(all, content)
		w.put(content, rcpts...)
	}
	for i, n := range sizes {
		add(sized(n, 1000*i))
		for k := range 10 {
			add(sized(200, 1000*i+k+1))
		}
	}
	w.start()
	for deadline := time.Now().Add(2 * time.Minute); w.left() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d left\n%.3000s", w.left(), w.log.b.String())
		}
	}
	return all
}

// intact wants each message once among what was delivered: with fields of the server's above it, and LF line ends.
func intact(t *testing.T, delivered [][]byte, want []string) {
	t.Helper()
	if len(delivered) != len(want) {
		t.Errorf("%d messages, want %d", len(delivered), len(want))
	}
	byNumber := map[string][]byte{}
	for _, m := range delivered {
		i := bytes.Index(m, []byte("Subject: number "))
		if i < 0 {
			t.Errorf("not ours: %.200q", m)
			continue
		}
		subject, _, _ := bytes.Cut(m[i:], []byte("\n"))
		if byNumber[string(subject)] != nil {
			t.Errorf("%s came twice", subject)
		}
		byNumber[string(subject)] = m[i:]
	}
	for _, c := range want {
		lf := strings.ReplaceAll(c, "\r\n", "\n")
		subject, _, _ := strings.Cut(lf, "\n")
		got := byNumber[subject]
		_, gotBody, _ := strings.Cut(string(got), "\n\n") // some add a Date
		_, body, _ := strings.Cut(lf, "\n\n")
		if strings.TrimRight(gotBody, "\n") != strings.TrimRight(body, "\n") {
			t.Errorf("%s changed: %d octets, want %d", subject, len(gotBody), len(body))
		}
	}
}

func TestPostfixGetsEverySizeIntact(t *testing.T) {
	for _, chunking := range []bool{true, false} {
		t.Run(fmt.Sprintf("chunking=%v", chunking), func(t *testing.T) {
			set := map[string]string{}
			if !chunking {
				set["smtpd_discard_ehlo_keywords"] = "chunking"
			}
			p := peer.NewPostfix(t, set)
			p.Start()
			w := newWorld(t, "example.org", at(t, p.Addr))
			want := sendSizes(t, w, "a@example.org")
			w.eventually("local delivery", func() bool { return p.Delivered() >= len(want) })
			intact(t, p.Messages(), want)
		})
	}
}

func TestPostfixSeesTheTrueClient(t *testing.T) {
	p := peer.NewPostfix(t, map[string]string{"smtpd_authorized_xclient_hosts": "127.0.0.1"})
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	for i := range 60 {
		w.n = 1000 + i
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i%6 + 1)}), uint16(2000+i))
		env := &mta.Envelope{ID: mta.NewID(time.Now()), Received: time.Now(), From: mta.Path{Local: "s", Domain: "example.net"},
			Peer:  mta.Peer{Addr: client, Helo: fmt.Sprintf("h%d.example.net", i%6+1), Name: fmt.Sprintf("rdns%d.example.net", i%6+1), Proto: "ESMTPS"},
			Rcpts: []mta.Recipient{{Addr: mta.Path{Local: "a", Domain: "example.org"}, Dest: "example.org"}}}
		w.putEnv(env, sized(100, i))
	}
	w.start()
	w.eventually("delivery", func() bool { return p.Delivered() == 60 })
	for _, m := range p.Messages() {
		_, rest, _ := strings.Cut(string(m), "Subject: number ")
		var n int
		fmt.Sscanf(rest, "%d", &n)
		want := fmt.Sprintf("from h%d.example.net (rdns%d.example.net [198.51.100.%d])", n%6+1, n%6+1, n%6+1)
		if !strings.Contains(string(m), want) {
			t.Errorf("no %q in %.500s", want, m)
		}
	}
}

func TestPostfixRefusesEveryThirdRecipient(t *testing.T) {
	p := peer.NewPostfix(t, map[string]string{"smtpd_recipient_restrictions": "check_recipient_access inline:{bad@example.org=REJECT}, permit_mynetworks, reject"})
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.cfg.Breaker.Share = 0.9
	var ids []mta.ID
	for i := range 100 {
		ids = append(ids, w.put(sized(100, i), "a@example.org", "b@example.org", "bad@example.org"))
	}
	w.start()
	w.eventually("an outcome of each", func() bool {
		for _, id := range ids {
			if i := w.items(id); len(i) != 1 || !i[0].Held {
				return false
			}
		}
		return true
	})
	w.eventually("local delivery", func() bool { return p.Delivered() == 200 })
	for _, id := range ids {
		for _, r := range w.items(id)[0].Rcpts {
			want := mta.Delivered
			if r.Addr.Local == "bad" {
				want = mta.Quarantined
			}
			if r.Outcome != want {
				t.Errorf("%s: %s, want %s (%s)", r.Addr, r.Outcome, want, r.Reply)
			}
		}
	}
}

func TestEximGetsEverySizeIntact(t *testing.T) {
	for _, settings := range []string{"chunking_advertise_hosts = *", "chunking_advertise_hosts =", "pipelining_advertise_hosts ="} {
		t.Run(settings, func(t *testing.T) {
			p := peer.NewExim(t, settings)
			p.Start()
			w := newWorld(t, "example.org", at(t, p.Addr))
			want := sendSizes(t, w, "a@example.org")
			w.eventually("local delivery", func() bool { return len(p.Messages()) >= len(want) })
			intact(t, p.Messages(), want)
		})
	}
}

func TestEximRefusesEveryThirdRecipientAndSessionsAreLimited(t *testing.T) {
	p := peer.NewExim(t, "smtp_accept_max_per_connection = 25\nchunking_advertise_hosts = *")
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.cfg.Breaker.Share = 0.9
	w.cfg.Sessions = 2
	var ids []mta.ID
	for i := range 100 {
		ids = append(ids, w.put(sized(100, i), "a@example.org", "bad@example.org", "b@example.org"))
	}
	w.start()
	w.eventually("an outcome of each", func() bool {
		for _, id := range ids {
			if i := w.items(id); len(i) != 1 || !i[0].Held {
				return false
			}
		}
		return true
	})
	w.eventually("local delivery", func() bool { return len(p.Messages()) >= 100 })
	if w.log.has("breaker") {
		t.Error("the breaker opened")
	}
}

func TestPostfixBehindPROXYSeesTheTrueClient(t *testing.T) {
	p := peer.NewPostfix(t, map[string]string{"smtpd_upstream_proxy_protocol": "haproxy", "smtpd_recipient_restrictions": "permit"})
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.domains = map[string]Domain{"example.org": {ClientIdentity: "proxy_v2"}}
	w.from("198.51.100.7:2525", "h.example.net", "a@example.org")
	w.from("127.0.0.1:2525", "inside", "a@example.org")
	w.start()
	w.eventually("delivery", func() bool { return p.Delivered() == 2 })
	told, ours := 0, 0
	for _, m := range p.Messages() {
		if bytes.Contains(m, []byte("from h.example.net (unknown [198.51.100.7])")) {
			told++
		}
		if bytes.Contains(m, []byte("from mx2.example.org (")) && bytes.Contains(m, []byte("[127.0.0.1])")) {
			ours++
		}
	}
	if told != 1 || ours != 1 {
		t.Errorf("told %d, ours %d: %q", told, ours, p.Messages())
	}
}

func TestOpenSMTPDGetsEverySizeIntact(t *testing.T) {
	p := peer.NewOpenSMTPD(t, "")
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	want := sendSizes(t, w, "a@example.org")
	for deadline := time.Now().Add(time.Minute); len(p.Messages()) < len(want); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d\n%.3000s", len(p.Messages()), len(want), p.Log())
		}
	}
	intact(t, p.Messages(), want)
}

func TestDovecotGetsEverySizeIntactOverLMTP(t *testing.T) {
	p := peer.NewDovecot(t, "a", "b")
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.domains = map[string]Domain{"example.org": {LMTP: true}}
	want := sendSizes(t, w, "a@example.org", "b@example.org")
	intact(t, p.Messages("a"), want)
	intact(t, p.Messages("b"), want)
}

// Each recipient has a reply of its own, at RCPT and after the content.
func TestDovecotRefusesOneRecipientAmongGoodOnes(t *testing.T) {
	p := peer.NewDovecot(t, "a", "b")
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.domains = map[string]Domain{"example.org": {LMTP: true}}
	w.cfg.Breaker.Share = 0.9
	var ids []mta.ID
	var want []string
	for i := range 100 {
		want = append(want, sized(3000, i))
		ids = append(ids, w.put(want[i], "a@example.org", "bad@example.org", "b@example.org"))
	}
	w.start()
	for _, id := range ids {
		w.eventually("an outcome of each", func() bool { i := w.items(id); return len(i) == 1 && i[0].Held })
		for _, r := range w.items(id)[0].Rcpts {
			outcome, enhanced := mta.Delivered, "2.0.0"
			if r.Addr.Local == "bad" {
				outcome, enhanced = mta.Quarantined, "5.1.1"
			}
			if r.Outcome != outcome || r.Reply.Enhanced != enhanced {
				t.Errorf("%s: %s (%s), want %s", r.Addr, r.Outcome, r.Reply, outcome)
			}
		}
	}
	intact(t, p.Messages("a"), want)
	intact(t, p.Messages("b"), want)
}

func TestEximBehindPROXYSeesTheTrueClient(t *testing.T) {
	p := peer.NewEximHeavy(t, "hosts_proxy = 127.0.0.1\nchunking_advertise_hosts = *")
	p.Start()
	w := newWorld(t, "example.org", at(t, p.Addr))
	w.domains = map[string]Domain{"example.org": {ClientIdentity: "proxy_v2"}}
	w.from("198.51.100.7:2525", "h.example.net", "a@example.org")
	w.from("[2001:db8::7]:2525", "h6.example.net", "a@example.org")
	w.from("127.0.0.1:2525", "inside", "a@example.org")
	w.start()
	w.eventually("delivery", func() bool { return len(p.Messages()) == 3 })
	all := string(bytes.Join(p.Messages(), nil))
	for _, want := range []string{"from [198.51.100.7] (helo=h.example.net)", "from [2001:db8::7] (helo=h6.example.net)", "from [127.0.0.1] (helo=mx2.example.org)"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %s", want, all)
		}
	}
}

func TestPostfixsLMTPSinkTakesMail(t *testing.T) {
	peer.Require(t, "smtp-sink")
	addr := peer.FreeAddr(t)
	process(t, addr, "smtp-sink", "-u", "nobody", "-L", addr, "100")
	w := newWorld(t, "example.org", at(t, addr))
	w.domains = map[string]Domain{"example.org": {LMTP: true}}
	for i := range 200 {
		w.put(sized(2000, i), "a@example.org", "b@example.org")
	}
	w.start()
	w.eventually("an empty spool", func() bool { return w.left() == 0 })
}
