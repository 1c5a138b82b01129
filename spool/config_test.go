package spool

import (
	"slices"
	"testing"
)

func TestTheDefaultsAreValid(t *testing.T) {
	cfg := DefaultConfig()
	if faults := cfg.Validate(); len(faults) > 0 {
		t.Errorf("%v", faults)
	}
}

func TestValidateReportsEveryFaultAtOnce(t *testing.T) {
	cfg := Config{Dir: "relative", Reserve: -1, ReservePercent: 91, Ballast: -1, MaxSize: -1, MaxDomainSize: -1, GenerationSize: 1, OldKeyFiles: []string{"a", ""}}
	var keys []string
	for _, f := range cfg.Validate() {
		keys = append(keys, f.Key)
	}
	want := []string{"dir", "reserve_percent", "reserve", "ballast", "max_size", "max_domain_size", "generation_size", "open_generations", "old_key_files[1]"}
	if !slices.Equal(keys, want) {
		t.Errorf("faults of %v, want %v", keys, want)
	}
}
