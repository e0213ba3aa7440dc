#!/bin/sh
PINNED=''
