package dnsx_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"understudy/internal/dnsx"
	"understudy/internal/dnsx/dnstest"
)

func TestOneDomainsTroubleIsNoSilenceAndOursIs(t *testing.T) {
	for _, fault := range []string{"SERVFAIL", "TIMEOUT"} {
		synctest.Test(t, func(t *testing.T) {
			z := dnstest.Zones{"good.test": {"1 MX 10 mx.good.test."}, "bad.test": {fault}}
			for i := range 10 {
				z[fmt.Sprintf("bad%d.test", i)] = []string{fault}
			}
			r := newResolver(t, func(c *dnsx.Config) { c.Exchange = dnstest.NewMemory(z).Exchange }, "192.0.2.53")
			ask := func(name string) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				r.LookupMX(ctx, name)
			}
			for range 100 {
				ask("bad.test")
				time.Sleep(2 * time.Second)
			}
			if r.Silent() {
				t.Error("one domain in trouble is taken for silence")
			}
			for i := range 60 {
				ask(fmt.Sprintf("bad%d.test", i%10))
				ask("good.test")
				time.Sleep(2 * time.Second)
			}
			if r.Silent() {
				t.Error("a resolver that answers is taken for silent")
			}
			for i := range 10 {
				ask(fmt.Sprintf("bad%d.test", i))
			}
			if r.Silent() {
				t.Error("silent at once")
			}
			time.Sleep(time.Minute)
			if !r.Silent() {
				t.Error("nothing was settled for a minute, and it is not silent")
			}
			if ask("good.test"); r.Silent() {
				t.Error("it answered, and is silent")
			}
		})
	}
}
