package healthprobe_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/healthprobe"
	"understudy/internal/testkit"
)

// BenchmarkScale watches many domains or primaries with default settings for a while, and measures what that costs:
// CPU (that of the sinks, in the same process, included), open files, memory.
func BenchmarkScale(b *testing.B) {
	tests := []struct {
		name               string
		domains, primaries int
		dead               int // per cent of the primaries that refuse connections
	}{
		{"10000_domains_on_3_primaries", 10_000, 3, 0},
		{"1000_primaries", 1_000, 1_000, 0},
		{"1000_primaries_a_tenth_dead", 1_000, 1_000, 10},
		{"10000_primaries", 10_000, 10_000, 0},
		{"10000_primaries_all_dead", 10_000, 10_000, 100},
	}
	for _, tt := range tests {
		b.Run(tt.name, func(b *testing.B) {
			port := sink(b)
			domains := make(map[string]healthprobe.Domain)
			for i := range tt.domains {
				n := i % tt.primaries
				at := port
				if n%100 < tt.dead {
					at = 1 // nobody listens at tcpmux
				}
				domains[fmt.Sprintf("d%d.test", i)] = healthprobe.Domain{Primaries: []string{fmt.Sprintf("127.1.%d.%d:%d", n/250, n%250+1, at)}}
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			r := newRoad(b, domains)
			for b.Loop() {
				time.Sleep(20 * time.Second) // the first round of probes, and the way to the next
				cpu, files := used(b), 0
				const window = 20 * time.Second
				for range 200 {
					time.Sleep(window / 200)
					files = max(files, openFiles(b))
				}
				b.ReportMetric(100*(used(b)-cpu).Seconds()/window.Seconds(), "cpu-%")
				b.ReportMetric(float64(files), "files-at-most")
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/(1<<20), "heap-MiB")
			up := 0
			for _, s := range r.prober.Status() {
				if s.Open {
					up++
				}
			}
			if want := tt.primaries * (100 - tt.dead) / 100; up != want {
				b.Errorf("%d primaries are open, want %d", up, want)
			}
		})
	}
}

// sink listens at one port of every loopback address.
func sink(b *testing.B) int {
	ln, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		b.Fatal(err)
	}
	p := testkit.NewPrimary(b)
	p.Discard = true
	p.Serve(ln)
	return ln.Addr().(*net.TCPAddr).Port
}

func used(b *testing.B) time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func openFiles(b *testing.B) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil && !strings.Contains(err.Error(), "no such file") {
		b.Fatal(err)
	}
	return len(entries)
}
