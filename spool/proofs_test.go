package spool

func childGroup(dir string) error { return nil }
func childFull(dir string) error  { return nil }
func childFiles(dir string) error { return nil }
func childScan(dir string) error  { return nil }
