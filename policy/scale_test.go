package policy

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"understudy/internal/mta"
)

// thousand writes a list of n addresses of a thousand domains, and names the domains.
func thousand(t testing.TB, n int) (file string, domains map[string]Domain, some []mta.Path) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "list")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	domains = map[string]Domain{}
	for i := range n {
		domain := fmt.Sprintf("domain%03d.example.org", i%1000)
		address := fmt.Sprintf("given.family%07d@%s", i, domain)
		fmt.Fprintln(w, address)
		domains[domain] = Domain{Recipients: file}
		if i%97 == 0 {
			some = append(some, mta.Path{Local: address[:19], Domain: domain})
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return file, domains, some
}

// A million recipients of a thousand domains are looked up in less than a microsecond, and while all of them are read
// again no lookup waits or errs.
func TestALookupIsFastAndDoesNotWaitForAReload(t *testing.T) {
	const n = 1_000_000
	_, domains, some := thousand(t, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p := loaded(t, DefaultConfig(), domains, quiet.Log)
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d recipients of %d domains: %.1f MiB", n, len(domains), float64(after.HeapAlloc-before.HeapAlloc)/(1<<20))

	calm := lookups(t, p, some, func() bool { return false })
	var reloading sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	reloading.Go(func() {
		defer cancel()
		began := time.Now()
		if err := p.Reload(t.Context(), DefaultConfig(), domains); err != nil {
			t.Error(err)
		}
		t.Logf("the reload took %v", time.Since(began).Round(time.Millisecond))
	})
	busy := lookups(t, p, some, func() bool { return ctx.Err() == nil })
	reloading.Wait()
	at := func(d []time.Duration, part float64) time.Duration { return d[int(float64(len(d)-1)*part)] }
	t.Logf("a lookup: median %v; during the reload median %v, 99.9 %% %v, longest %v of %d", at(calm, 0.5), at(busy, 0.5), at(busy, 0.999), at(busy, 1), len(busy))
	if got := at(calm, 0.5); got > 5*time.Microsecond { // a microsecond, on a machine that has other things to do
		t.Errorf("the median lookup takes %v", got)
	}
	if got := at(busy, 0.99); got > time.Millisecond {
		t.Errorf("during a reload one lookup of a hundred takes %v", got)
	}
}

// lookups asks for each path once, and again as long as more says so; the times are sorted.
func lookups(t *testing.T, p *Policy, some []mta.Path, more func() bool) []time.Duration {
	t.Helper()
	var took []time.Duration
	for first := true; first || more(); first = false {
		for _, to := range some {
			began := time.Now()
			if _, err := p.Recipient(t.Context(), nil, to); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	return took
}

func BenchmarkAThousandDomains(b *testing.B) {
	_, domains, some := thousand(b, 1_000_000)
	p, err := New(DefaultConfig(), domains, quiet)
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Load(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := p.Recipient(b.Context(), nil, some[i%len(some)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
