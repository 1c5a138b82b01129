package healthprobe

import (
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"understudy/internal/mta"
	"understudy/internal/testkit"
)

func TestThePageTellsEveryMetricAndEveryKindOfAlarm(t *testing.T) {
	page, err := os.ReadFile("../docs/healthprobe.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range mta.Kinds() {
		if !strings.Contains(string(page), "`"+kind+"`") {
			t.Errorf("kind %s is not documented", kind)
		}
	}
	primary := testkit.NewPrimary(t)
	primary.Start()
	reg := prometheus.NewRegistry()
	p := start(t, DefaultConfig(), map[string]Domain{"example.org": {Primaries: []string{primary.Addr()}}}, Deps{Metrics: reg})
	await(t, p, "up", func() bool { return p.Open(primary.Addr()) })
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	state := ""
	for _, f := range families {
		if !strings.Contains(string(page), f.GetName()) {
			t.Errorf("metric %s is not documented", f.GetName())
		}
		if f.GetName() == "understudy_healthprobe_primary_state" {
			for _, l := range f.GetMetric()[0].GetLabel() {
				state += l.GetName() + "=" + l.GetValue() + " "
			}
		}
	}
	if want := "primary=" + primary.Addr() + " state=up "; state != want {
		t.Errorf("the state's labels are %q, want %q", state, want)
	}
}
