package inbound

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/internal/mta"
	"understudy/internal/testkit/peer"
)

// discard is a spool that keeps nothing.
type discard struct{}

func (discard) Put(_ context.Context, _ *mta.Envelope, body io.Reader) error {
	_, err := io.Copy(io.Discard, body)
	return err
}

func (discard) Room(context.Context, string, int64) error { return nil }

func benchServer(b testing.TB) *running {
	cfg := testConfig(b)
	cfg.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return start(b, cfg, func(d *Deps) { d.Spool, d.Log = discard{}, nil })
}

// message is content of about size octets.
func message(size int) string {
	line := strings.Repeat("x", 76) + "\r\n"
	return "Subject: benchmark\r\n\r\n" + strings.Repeat(line, size/len(line))
}

// group is what a client sends without waiting, and how many replies it gets.
type group struct {
	send    string
	replies int
}

// BenchmarkData sends messages on one connection: in lock-step, as most senders do, pipelined, or all at once with BDAT.
// CPU time is that of client and server.
func BenchmarkData(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		content := message(size)
		for way, groups := range map[string][]group{
			"lockstep": {
				{"MAIL FROM:<bob@example.net>\r\n", 1}, {"RCPT TO:<alice@example.org>\r\n", 1}, {"DATA\r\n", 1}, {content + ".\r\n", 1},
			},
			"pipelined": {{"MAIL FROM:<bob@example.net>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\n", 3}, {content + ".\r\n", 1}},
			"bdat":      {{fmt.Sprintf("RSET\r\nMAIL FROM:<bob@example.net>\r\nRCPT TO:<alice@example.org>\r\nBDAT %d LAST\r\n%s", len(content), content), 4}},
		} {
			b.Run(fmt.Sprintf("%dKiB/%s", size>>10, way), func(b *testing.B) {
				r := benchServer(b)
				c, err := net.Dial("tcp", r.addr())
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				in := bufio.NewReader(c)
				io.WriteString(c, "EHLO bench\r\n")
				expect(b, in, 2)
				b.SetBytes(int64(len(content)))
				before := cpuTime(b)
				b.ResetTimer()
				if len(groups) == 1 {
					stream(b, c, in, groups[0])
				} else {
					converse(b, c, in, groups)
				}
				b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
			})
		}
	}
}

// stream sends without waiting for any reply.
func stream(b *testing.B, c net.Conn, in *bufio.Reader, g group) {
	text, sent := []byte(g.send), make(chan error, 1)
	go func() {
		for range b.N {
			if _, err := c.Write(text); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	expect(b, in, g.replies*b.N)
	if err := <-sent; err != nil {
		b.Fatal(err)
	}
}

// converse waits after each group.
func converse(b *testing.B, c net.Conn, in *bufio.Reader, groups []group) {
	for range b.N {
		for _, g := range groups {
			if _, err := io.WriteString(c, g.send); err != nil {
				b.Fatal(err)
			}
			expect(b, in, g.replies)
		}
	}
}

// expect reads n replies that are no refusals.
func expect(b testing.TB, in *bufio.Reader, n int) {
	for n > 0 {
		line, err := in.ReadSlice('\n')
		if err != nil || line[0] > '3' {
			b.Fatalf("got %q, %v", line, err)
		}
		if line[3] == ' ' {
			n--
		}
	}
}

func cpuTime(b testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// asServer makes the test binary a server that the benchmarks measure from outside: it prints its address and serves
// until its input ends.
const asServer = "UNDERSTUDY_INBOUND_SERVER"

func serveForBenchmark() {
	cfg := DefaultConfig()
	cfg.Hostname, cfg.Listen, cfg.StateDir = "mx2.example.org", []Listener{{Address: "127.0.0.1:0"}}, ""
	cfg.TempDir = os.TempDir()
	s, err := New(cfg, Deps{Spool: discard{}, Policy: testPolicy{}})
	if err == nil {
		err = s.Listen()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.Addrs()[0])
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	s.Run(ctx)
}

// process is a server in a process of its own.
type process struct {
	cmd   *exec.Cmd
	addr  string
	stdin io.Closer
}

func newProcess(b testing.TB, threads int) *process {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asServer+"=1", fmt.Sprintf("GOMAXPROCS=%d", threads))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return &process{cmd, strings.TrimSpace(addr), in}
}

// end stops it and returns the CPU time that it used.
func (p *process) end() time.Duration {
	p.stdin.Close()
	p.cmd.Wait()
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

// resident is the anonymous memory of the process, in octets.
func (p *process) resident(b testing.TB) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb << 10
}

// BenchmarkIdleConnections opens 2,000 connections and reports what a server holds for them, after EHLO and after
// STARTTLS, and how long a newcomer waits for its greeting. The whole of it is one iteration.
func BenchmarkIdleConnections(b *testing.B) {
	const n = 2000
	for _, secured := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%v", secured), func(b *testing.B) {
			p := newProcess(b, runtime.NumCPU())
			defer p.end()
			empty := p.resident(b)
			for range n {
				c := dial(b, p.addr)
				c.want("220")
				if secured {
					c.startTLS(nil)
				}
				c.say("EHLO idle.example.net", "250")
				c.buf = nil
			}
			full := p.resident(b)
			begun := time.Now()
			dial(b, p.addr).want("220")
			b.ReportMetric(float64(full)/(1<<20), "MiB")
			b.ReportMetric(float64(full-empty)/n/1024, "KiB/conn")
			b.ReportMetric(float64(time.Since(begun).Microseconds()), "newcomer-µs")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkAgainstSink compares with Postfix's smtp-sink, which does nothing but speak SMTP, on one thread: the CPU time
// that a message of 4 KiB costs, and one of 1 MiB, each sent by smtp-source on 10 connections. With more than one thread
// Go's scheduler spends some time on looking for work, the more the busier the machine is with other things.
func BenchmarkAgainstSink(b *testing.B) {
	peer.Require(b, "smtp-source", "smtp-sink")
	for _, tt := range []struct{ size, n int }{{4 << 10, 20_000}, {1 << 20, 300}} {
		for _, threads := range []int{1, runtime.NumCPU()} {
			b.Run(fmt.Sprintf("%dKiB/threads=%d", tt.size>>10, threads), func(b *testing.B) {
				ours := newProcess(b, threads)
				send(b, ours.addr, tt.size, tt.n)
				cpu := float64(ours.end().Microseconds()) / float64(tt.n)
				theirs := float64(sinkTime(b, tt.size, tt.n).Microseconds()) / float64(tt.n)
				b.ReportMetric(cpu, "cpu-µs/msg")
				b.ReportMetric(theirs, "sink-cpu-µs/msg")
				b.ReportMetric(cpu/theirs, "ratio")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// sinkTime is the CPU time that smtp-sink uses for the same.
func sinkTime(b *testing.B, size, n int) time.Duration {
	addr := peer.FreeAddr(b)
	sink := exec.Command("smtp-sink", "-u", "postfix", addr, "1000")
	if err := sink.Start(); err != nil {
		b.Fatal(err)
	}
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			break
		}
		runtime.Gosched()
	}
	send(b, addr, size, n)
	sink.Process.Signal(syscall.SIGTERM)
	sink.Wait()
	return sink.ProcessState.UserTime() + sink.ProcessState.SystemTime()
}

func send(b testing.TB, addr string, size, n int) {
	b.Helper()
	out, err := exec.Command("smtp-source", "-s", "10", "-d", "-l", strconv.Itoa(size), "-m", strconv.Itoa(n),
		"-f", "bob@example.net", "-t", "alice@example.org", "inet:"+addr).CombinedOutput()
	if err != nil {
		b.Fatalf("smtp-source: %v\n%s", err, out)
	}
}
