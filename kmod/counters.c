// SPDX-License-Identifier: GPL-2.0-only OR MIT
/*
 * Connection counters and the directory in sysfs that shows them.
 */
#include "counters.h"

#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/sysfs.h>

struct fastecho_counters fastecho_counters;

static struct kobject *directory;

static ssize_t listening_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&fastecho_counters.listening));
}

static ssize_t active_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&fastecho_counters.active));
}

static ssize_t total_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", atomic64_read(&fastecho_counters.total));
}

static ssize_t rejected_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", atomic64_read(&fastecho_counters.rejected));
}

static ssize_t aborted_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lld\n", atomic64_read(&fastecho_counters.aborted));
}

static struct kobj_attribute listening = __ATTR_RO(listening);
static struct kobj_attribute active = __ATTR_RO(active);
static struct kobj_attribute total = __ATTR_RO(total);
static struct kobj_attribute rejected = __ATTR_RO(rejected);
static struct kobj_attribute aborted = __ATTR_RO(aborted);

static struct attribute *attributes[] = {
	&listening.attr, &active.attr, &total.attr, &rejected.attr, &aborted.attr, NULL,
};

static const struct attribute_group group = {.attrs = attributes};

int fastecho_counters_init(void)
{
	int err;

	directory = kobject_create_and_add("connections", &THIS_MODULE->mkobj.kobj);
	if (!directory)
		return -ENOMEM;
	err = sysfs_create_group(directory, &group);
	if (err)
		kobject_put(directory);
	return err;
}

void fastecho_counters_uninit(void)
{
	sysfs_remove_group(directory, &group);
	kobject_put(directory);
}
